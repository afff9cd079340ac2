// Log-probs and their gradient in one pass over the vocabulary: drives directions.h.
#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"
#include "isa/kernels.h"
#include "logprobs/logprobs.h"
#include "logprobs/plan.h"

namespace rlhf::logprobs {
namespace {

// What the tokens other than the label give some rows over one split of the vocabulary.
struct Partial {
    Buffer<float> statistics, sums;

    Partial() = default;
    Partial(std::int64_t padded, std::int64_t stride) : statistics(3 * padded), sums(padded * stride) {
        std::fill_n(sums.data(), padded * stride, 0.0f);
    }
};

// A row's results once its label has joined the other tokens, and how its direction is composed.
struct Row {
    double max, log_sum, logprob, entropy;
    double label_weight;  // of the label's row of W: (1 - p_y) softcap'(z_y) / T
    double sums_weight;   // of the sums, where these are relative to e^max

    Row(const Merged& others, double label_logit, const Projection& projection) {
        max = std::max(others.max, label_logit);
        const double change = others.max - max, factor = std::exp(change);
        const double own = std::exp(label_logit - max), rest = factor * others.sum, sum = rest + own;
        const double moment =
            factor * (others.moment + change * others.sum) + (own > 0 ? own * (label_logit - max) : 0);
        const double capped = projection.softcap > 0 ? label_logit * projection.temperature / projection.softcap : 0;
        log_sum = std::log(sum);
        logprob = label_logit - max - log_sum;
        entropy = log_sum - moment / sum;
        label_weight = rest / sum * (1 - capped * capped) / projection.temperature;
        sums_weight = 1 / (sum * projection.temperature);
    }
};

class Directions {
   public:
    Directions(const Scoring& scoring, const Scores& scores, float* directions, const Compute& compute,
               const ScoredRows& scored, const Plan& plan)
        : scoring_(scoring), scores_(scores), directions_(directions), element_(compute.element), scored_(scored),
          plan_(plan), kernels_(compute.kernels->logprobs[compute.element]),
          stride_(kernels_.gradient_stride(scoring.projection.hidden_size)), partials_(plan.parts * plan.splits),
          label_logits_(scored.count()) {}

    void accumulate(std::int64_t part, std::int64_t split) {
        const Projection& projection = scoring_.projection;
        const Range rows = plan_.rows_of(part), tokens = plan_.vocabulary_of(split);
        const Buffer<char> panels(kernels_.panel_bytes(rows.count, projection.hidden_size));
        kernels_.pack(scoring_.hidden, scored_.ids.data() + rows.first, rows.count, projection.hidden_size,
                      panels.data());
        Partial& partial = partials_[part * plan_.splits + split];
        partial = Partial(kernels_.padded_rows(rows.count), stride_);
        DirectionsTask task{};
        task.projection = &projection;
        task.labels = scored_.labels.data() + rows.first;
        task.rows = rows.count;
        task.first = tokens.first;
        task.last = tokens.first + tokens.count;
        task.panels = panels.data();
        task.weight = scoring_.weight;
        task.statistics = statistics(part, split);
        task.label_logits = label_logits_.data() + rows.first;
        task.sums = partial.sums.data();
        kernels_.directions(task);
    }

    void finish(std::int64_t part) {
        const Range rows = plan_.rows_of(part);
        std::vector<Statistics> parts;
        for (std::int64_t split = 0; split < plan_.splits; ++split) parts.push_back(statistics(part, split));
        for (std::int64_t r = 0; r < rows.count; ++r) {
            const Row row(merge(parts, r), label_logits_.data()[rows.first + r], scoring_.projection);
            write_scores(row, scored_.ids[rows.first + r]);
            if (element_ == Element::kBFloat16) {
                write_direction<std::uint16_t>(row, part, r);
            } else {
                write_direction<float>(row, part, r);
            }
        }
        for (std::int64_t split = 0; split < plan_.splits; ++split) partials_[part * plan_.splits + split] = {};
    }

   private:
    Statistics statistics(std::int64_t part, std::int64_t split) const {
        const std::int64_t padded = kernels_.padded_rows(plan_.rows_of(part).count);
        float* first = partials_[part * plan_.splits + split].statistics.data();
        return {first, first + padded, first + 2 * padded};
    }

    void write_scores(const Row& row, std::int64_t id) const {
        scores_.logprobs[id] = static_cast<float>(row.logprob);
        scores_.max[id] = static_cast<float>(row.max);
        scores_.log_sum[id] = static_cast<float>(row.log_sum);
        if (scores_.entropy != nullptr) scores_.entropy[id] = static_cast<float>(row.entropy);
    }

    template <class Source>
    void write_direction(const Row& row, std::int64_t part, std::int64_t r) const {
        const std::int64_t at = plan_.rows_of(part).first + r, hidden_size = scoring_.projection.hidden_size;
        const Source* label =
            static_cast<const Source*>(scoring_.weight.data) + scored_.labels[at] * scoring_.weight.stride;
        float* out = directions_ + scored_.ids[at] * hidden_size;
        const float label_weight = static_cast<float>(row.label_weight);
        for (std::int64_t h = 0; h < hidden_size; ++h) out[h] = label_weight * to_float(label[h]);
        for (std::int64_t split = 0; split < plan_.splits; ++split) {
            const double change = statistics(part, split).max[r] - row.max;
            const float weight = static_cast<float>(std::exp(change) * row.sums_weight);
            const float* sums = partials_[part * plan_.splits + split].sums.data() + r * stride_;
            for (std::int64_t h = 0; h < hidden_size; ++h) out[h] -= weight * sums[h];
        }
    }

    const Scoring& scoring_;
    const Scores& scores_;
    float* directions_;
    Element element_;
    const ScoredRows& scored_;
    const Plan& plan_;
    const LogprobsKernels& kernels_;
    std::int64_t stride_;
    std::vector<Partial> partials_;  // (parts, splits)
    Buffer<float> label_logits_;     // (scored rows,)
};

}  // namespace

void linear_logprobs_directions(const Scoring& scoring, const Scores& scores, float* directions,
                                const Compute& compute) {
    const ScoredRows scored(scoring.labels, scoring.rows);
    if (scored.count() == 0) return;
    const int team = useful_threads(scoring.projection, scored.count(), compute.threads);
    const Plan plan(scored.count(), scoring.projection, compute.element, team);
    Directions work(scoring, scores, directions, compute, scored, plan);
    plan.run(
        team, [&](std::int64_t part, std::int64_t split) { work.accumulate(part, split); },
        [&](std::int64_t part) { work.finish(part); });
}

}  // namespace rlhf::logprobs
