// A token for each row, a range of the vocabulary at a time: drives race.h.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "common.h"
#include "isa/kernels.h"
#include "logprobs/logprobs.h"
#include "logprobs/plan.h"

namespace rlhf::logprobs {
namespace {

constexpr std::int64_t kRanges = 64;       // most ranges of the vocabulary; ranges are the parallel tasks
constexpr std::int64_t kRangeRows = 512;   // fewest vocabulary rows of a range
constexpr std::int64_t kPanelBytes = 4 << 20;  // of hidden states that meet the weights in one pass

std::uint64_t mix64(std::uint64_t x) {  // SplitMix64 (Steele et al. 2014)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15u;

std::uint64_t row_key(std::int64_t seed, std::int64_t step) {
    const std::uint64_t start = mix64(static_cast<std::uint64_t>(seed) * kGolden + 0x632BE59BD9B4E019u);
    return mix64(start + static_cast<std::uint64_t>(step) * kGolden);
}

// Some rows against the whole vocabulary, a range of it at a time.
class Race {
   public:
    Race(const Drawing& drawing, std::int64_t first, std::int64_t rows, const LogprobsKernels& kernels)
        : drawing_(drawing), first_(first), rows_(rows), kernels_(kernels), padded_(kernels.padded_rows(rows)),
          range_(std::max(kRangeRows, divide_up(divide_up(drawing.projection.vocabulary, kRanges), 128) * 128)),
          ranges_(divide_up(drawing.projection.vocabulary, range_)), memory_(ranges_ * kFields * padded_),
          winners_(ranges_ * padded_), keys_(2 * padded_),
          panels_(kernels.panel_bytes(rows, drawing.projection.hidden_size)) {
        std::vector<std::int64_t> ids(static_cast<std::size_t>(rows));
        std::iota(ids.begin(), ids.end(), first);
        kernels.pack(drawing.hidden, ids.data(), rows, drawing.projection.hidden_size, panels_.data());
        std::fill_n(keys_.data(), 2 * padded_, 0);
        for (std::int64_t r = 0; drawing.seeds != nullptr && r < rows; ++r) {
            const std::uint64_t key = row_key(drawing.seeds[first + r], drawing.steps[first + r]);
            keys_.data()[r] = static_cast<std::uint32_t>(key);
            keys_.data()[padded_ + r] = static_cast<std::uint32_t>(key >> 32);
        }
        for (std::int64_t range = 0; range < ranges_; ++range) {
            float* const f = field(range, 0);
            statistics_.push_back({f, f + padded_, f + 2 * padded_});
        }
    }

    void run([[maybe_unused]] int team) const {
#pragma omp parallel for schedule(dynamic) num_threads(team)
        for (std::int64_t range = 0; range < ranges_; ++range) kernels_.sample(task(range));
    }

    void finish(std::int64_t* tokens, float* logprobs) const {
        for (std::int64_t r = 0; r < rows_; ++r) {
            std::int64_t best = 0;
            for (std::int64_t range = 1; range < ranges_; ++range) {
                if (field(range, 3)[r] > field(best, 3)[r]) best = range;
            }
            const Merged all = merge(statistics_, r);
            tokens[first_ + r] = winners_.data()[best * padded_ + r];
            logprobs[first_ + r] = static_cast<float>(field(best, 4)[r] - all.max - std::log(all.sum));
        }
    }

   private:
    static constexpr int kFields = 5;  // three statistics, the best score and its logit

    float* field(std::int64_t range, int index) const { return memory_.data() + (range * kFields + index) * padded_; }

    SampleTask task(std::int64_t range) const {
        const bool greedy = drawing_.seeds == nullptr;
        SampleTask task{};
        task.projection = &drawing_.projection;
        task.rows = rows_;
        task.first = range * range_;
        task.last = std::min(task.first + range_, drawing_.projection.vocabulary);
        task.panels = panels_.data();
        task.weight = drawing_.weight;
        task.statistics = statistics_[static_cast<std::size_t>(range)];
        task.keys = greedy ? nullptr : keys_.data();
        task.second_keys = greedy ? nullptr : keys_.data() + padded_;
        task.best = field(range, 3), task.logit = field(range, 4);
        task.token = winners_.data() + range * padded_;
        return task;
    }

    const Drawing& drawing_;
    std::int64_t first_, rows_;
    const LogprobsKernels& kernels_;
    std::int64_t padded_, range_, ranges_;
    Buffer<float> memory_;
    Buffer<std::int32_t> winners_;
    Buffer<std::uint32_t> keys_;
    std::vector<Statistics> statistics_;  // of the ranges, in memory_
    Buffer<char> panels_;
};

}  // namespace

void sample(const Drawing& drawing, std::int64_t* tokens, float* logprobs, const Compute& compute) {
    const LogprobsKernels& kernels = compute.kernels->logprobs[compute.element];
    const std::int64_t row_bytes = divide_up(kernels.panel_bytes(64, drawing.projection.hidden_size), 64);
    const std::int64_t most = std::max<std::int64_t>(kPanelBytes / row_bytes, 64);
    const std::int64_t passes = divide_up(drawing.rows, most);
    for (std::int64_t p = 0; p < passes; ++p) {
        const std::int64_t first = p * drawing.rows / passes, rows = (p + 1) * drawing.rows / passes - first;
        const Race race(drawing, first, rows, kernels);
        race.run(useful_threads(drawing.projection, rows, compute.threads));
        race.finish(tokens, logprobs);
    }
}

}  // namespace rlhf::logprobs
