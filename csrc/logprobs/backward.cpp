// The gradient of the hidden states, from logits that are computed again: drives backward.h.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common.h"
#include "isa/kernels.h"
#include "logprobs/logprobs.h"
#include "logprobs/plan.h"

namespace rlhf::logprobs {
namespace {

// Entries of dz below this share of the upstream gradient may be rounded, however large their share of the row's sum.
constexpr float kRoundingShare = 2.4e-7f;

// The inputs of some rows side by side, 0 beyond them.
class GatheredRows {
   public:
    GatheredRows(const Scores& scores, const float* d_logprobs, const float* d_entropy, float temperature,
                 const std::int64_t* ids, std::int64_t rows, std::int64_t padded)
        : padded_(padded), values_(kFields * padded) {
        std::fill_n(values_.data(), kFields * padded, 0.0f);
        std::fill_n(values_.data() + padded, padded, std::numeric_limits<float>::max());  // log_sum: p is 0 beyond
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t id = ids[r];
            const float entropy = d_entropy == nullptr ? 0.0f : scores.entropy[id];
            const float a = d_logprobs[id], b = d_entropy == nullptr ? 0.0f : d_entropy[id];
            const float total = std::fabs(a) * -std::expm1(scores.logprobs[id]) + 2 * std::fabs(b) * entropy;
            const float rounding = kRoundingShare * (std::fabs(a) + std::fabs(b) * (1 + entropy));
            const float limit = std::max(kLargeShare * total, rounding) / temperature;
            const float fields[kFields] = {scores.max[id], scores.log_sum[id], entropy, a, b, limit};
            for (int f = 0; f < kFields; ++f) values_.data()[f * padded + r] = fields[f];
        }
    }
    RowGradients gradients() const {
        const float* v = values_.data();
        return {v, v + padded_, v + 2 * padded_, v + 3 * padded_, v + 4 * padded_, v + 5 * padded_};
    }

   private:
    static constexpr int kFields = 6;
    std::int64_t padded_;
    Buffer<float> values_;
};

class Backward {
   public:
    Backward(const Scoring& scoring, const Scores& scores, const float* d_logprobs, const float* d_entropy,
             void* d_hidden, const Compute& compute, const ScoredRows& scored, const Plan& plan)
        : scoring_(scoring), scores_(scores), d_logprobs_(d_logprobs), d_entropy_(d_entropy), d_hidden_(d_hidden),
          element_(compute.element), scored_(scored), plan_(plan),
          kernels_(compute.kernels->logprobs[compute.element]),
          stride_(kernels_.gradient_stride(scoring.projection.hidden_size)), sums_(plan.parts * plan.splits) {}

    void accumulate(std::int64_t part, std::int64_t split) {
        const Projection& projection = scoring_.projection;
        const Range range = plan_.rows_of(part), tokens = plan_.vocabulary_of(split);
        const std::int64_t first = range.first, rows = range.count;
        const std::int64_t padded = kernels_.padded_rows(rows), *ids = scored_.ids.data() + first;
        const Buffer<char> panels(kernels_.panel_bytes(rows, projection.hidden_size));
        kernels_.pack(scoring_.hidden, ids, rows, projection.hidden_size, panels.data());
        const GatheredRows gathered(scores_, d_logprobs_, d_entropy_, projection.temperature, ids, rows, padded);
        Buffer<float> sum(padded * stride_);
        std::fill_n(sum.data(), padded * stride_, 0.0f);
        BackwardTask task{};
        task.projection = &projection;
        task.labels = scored_.labels.data() + first;
        task.rows = rows;
        task.first = tokens.first;
        task.last = tokens.first + tokens.count;
        task.panels = panels.data();
        task.weight = scoring_.weight;
        task.gradients = gathered.gradients();
        task.d_hidden = sum.data();
        kernels_.backward(task);
        sums_[part * plan_.splits + split] = std::move(sum);
    }

    // The sum over the splits of a part, in the element type of the hidden states.
    void finish(std::int64_t part) {
        const auto [first, count] = plan_.rows_of(part);
        const std::int64_t hidden_size = scoring_.projection.hidden_size;
        for (std::int64_t i = 0; i < count * hidden_size; ++i) {
            const std::int64_t row = i / hidden_size, h = i % hidden_size;
            float sum = 0;
            for (std::int64_t s = 0; s < plan_.splits; ++s) {
                sum += sums_[part * plan_.splits + s].data()[row * stride_ + h];
            }
            const std::int64_t at = scored_.ids[first + row] * hidden_size + h;
            if (element_ == Element::kBFloat16) {
                static_cast<std::uint16_t*>(d_hidden_)[at] = to_bfloat16(sum);
            } else {
                static_cast<float*>(d_hidden_)[at] = sum;
            }
        }
        for (std::int64_t s = 0; s < plan_.splits; ++s) sums_[part * plan_.splits + s] = {};
    }

   private:
    const Scoring& scoring_;
    const Scores& scores_;
    const float *d_logprobs_, *d_entropy_;
    void* d_hidden_;
    Element element_;
    const ScoredRows& scored_;
    const Plan& plan_;
    const LogprobsKernels& kernels_;
    std::int64_t stride_;
    std::vector<Buffer<float>> sums_;  // (parts, splits) of (padded rows, stride)
};

}  // namespace

void linear_logprobs_backward(const Scoring& scoring, const Scores& scores, const float* d_logprobs,
                              const float* d_entropy, void* d_hidden, const Compute& compute) {
    const ScoredRows scored(scoring.labels, scoring.rows);
    if (scored.count() == 0) return;
    const Projection& projection = scoring.projection;
    const int team = useful_threads(projection, scored.count(), compute.threads);
    const Plan plan(scored.count(), projection, compute.element, team);
    Backward work(scoring, scores, d_logprobs, d_entropy, d_hidden, compute, scored, plan);
    plan.run(
        team, [&](std::int64_t part, std::int64_t split) { work.accumulate(part, split); },
        [&](std::int64_t part) { work.finish(part); });
}

}  // namespace rlhf::logprobs
