// Log-probs, entropy and KL, a range of the vocabulary at a time: drives forward.h.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"
#include "isa/kernels.h"
#include "logprobs/logprobs.h"
#include "logprobs/plan.h"

namespace rlhf::logprobs {
namespace {

constexpr std::int64_t kPanelBytes = 4 << 20;  // of hidden states that meet the weights in one pass
constexpr std::int64_t kPassRows = 2048;       // most rows of a pass
constexpr std::int64_t kRanges = 64;           // most ranges of the vocabulary; ranges are the parallel tasks
constexpr std::int64_t kRangeRows = 512;       // fewest vocabulary rows of a range

struct Model {
    Matrix hidden, weight;
};

// Some rows of one or two models against the whole vocabulary. Every range of the vocabulary has its own statistics,
// and they are merged in order: results do not depend on which thread took which range.
class Pass {
   public:
    struct Row {
        double max, log_sum, logprob, mean;  // mean of what the statistics call moment
    };

    Pass(const Projection& projection, const Model* models, int count, const ScoredRows& scored, std::int64_t first,
         std::int64_t rows, const LogprobsKernels& kernels)
        : projection_(projection), models_(models), count_(count), labels_(scored.labels.data() + first), rows_(rows),
          kernels_(kernels), padded_(kernels.padded_rows(rows)),
          range_(std::max(kRangeRows, divide_up(divide_up(projection.vocabulary, kRanges), 128) * 128)),
          ranges_(divide_up(projection.vocabulary, range_)), memory_(ranges_ * kFields * padded_),
          label_logits_(count * padded_) {
        for (int m = 0; m < count; ++m) {
            panels_[m] = Buffer<char>(kernels.panel_bytes(rows, projection.hidden_size));
            kernels.pack(models[m].hidden, scored.ids.data() + first, rows, projection.hidden_size, panels_[m].data());
            for (std::int64_t range = 0; range < ranges_; ++range) {
                float* field = memory_.data() + (range * kFields + m * 3) * padded_;
                statistics_[m].push_back({field, field + padded_, m == 0 ? field + 2 * padded_ : nullptr});
            }
        }
    }

    void run([[maybe_unused]] int team) const {
#pragma omp parallel for schedule(dynamic) num_threads(team)
        for (std::int64_t range = 0; range < ranges_; ++range) kernels_.forward(task(range));
    }

    Row row(int model, std::int64_t r) const {
        const Merged all = merge(statistics_[model], r, model == 0 && count_ == 2 ? &statistics_[1] : nullptr);
        const double log_sum = std::log(all.sum);
        return {all.max, log_sum, label_logits_.data()[model * padded_ + r] - all.max - log_sum, all.moment / all.sum};
    }

   private:
    static constexpr int kFields = 5;  // three of the first model, two of the second

    ForwardTask task(std::int64_t range) const {
        ForwardTask task{};
        task.projection = &projection_;
        task.labels = labels_;
        task.rows = rows_;
        task.first = range * range_;
        task.last = std::min(task.first + range_, projection_.vocabulary);
        task.models = count_;
        for (int m = 0; m < count_; ++m) {
            task.panels[m] = panels_[m].data();
            task.weight[m] = models_[m].weight;
            task.statistics[m] = statistics_[m][range];
            task.label_logits[m] = label_logits_.data() + m * padded_;
        }
        return task;
    }

    const Projection& projection_;
    const Model* models_;
    int count_;
    const std::int64_t* labels_;
    std::int64_t rows_;
    const LogprobsKernels& kernels_;
    std::int64_t padded_, range_, ranges_;
    Buffer<float> memory_, label_logits_;
    std::vector<Statistics> statistics_[2];  // of the ranges, in memory_
    Buffer<char> panels_[2];
};

// Cuts the scored rows into passes and calls finish(pass, row of the pass, row of the input) for each row.
template <class Finish>
void for_each_row(const Scoring& scoring, const Model* models, int count, const Compute& compute, Finish finish) {
    const LogprobsKernels& kernels = compute.kernels->logprobs[compute.element];
    const ScoredRows scored(scoring.labels, scoring.rows);
    const std::int64_t row_bytes = divide_up(kernels.panel_bytes(64, scoring.projection.hidden_size), 64) * count;
    const std::int64_t most = std::clamp<std::int64_t>(kPanelBytes / row_bytes, 64, kPassRows);
    const std::int64_t passes = divide_up(scored.count(), most);
    for (std::int64_t p = 0; p < passes; ++p) {
        const std::int64_t first = p * scored.count() / passes, rows = (p + 1) * scored.count() / passes - first;
        const Pass pass(scoring.projection, models, count, scored, first, rows, kernels);
        [[maybe_unused]] const int team = useful_threads(scoring.projection, rows, compute.threads);
        pass.run(team);
#pragma omp parallel for num_threads(team)
        for (std::int64_t r = 0; r < rows; ++r) finish(pass, r, scored.ids[first + r]);
    }
}

}  // namespace

void linear_logprobs(const Scoring& scoring, const Scores& scores, const Compute& compute) {
    const Model model{scoring.hidden, scoring.weight};
    for_each_row(scoring, &model, 1, compute, [&](const Pass& pass, std::int64_t r, std::int64_t id) {
        const Pass::Row row = pass.row(0, r);
        scores.logprobs[id] = static_cast<float>(row.logprob);
        scores.max[id] = static_cast<float>(row.max);
        scores.log_sum[id] = static_cast<float>(row.log_sum);
        if (scores.entropy != nullptr) scores.entropy[id] = static_cast<float>(row.log_sum - row.mean);
    });
}

void policy_reference_logprobs(const Scoring& policy, Matrix ref_hidden, Matrix ref_weight, float* logprobs,
                               float* ref_logprobs, float* kl, const Compute& compute) {
    const Model models[2] = {{policy.hidden, policy.weight}, {ref_hidden, ref_weight}};
    for_each_row(policy, models, 2, compute, [&](const Pass& pass, std::int64_t r, std::int64_t id) {
        const Pass::Row row = pass.row(0, r), ref = pass.row(1, r);
        logprobs[id] = static_cast<float>(row.logprob);
        ref_logprobs[id] = static_cast<float>(ref.logprob);
        if (kl != nullptr) kl[id] = static_cast<float>(row.mean + ref.log_sum - row.log_sum);
    });
}

}  // namespace rlhf::logprobs
