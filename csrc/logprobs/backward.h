// Gradient of some hidden rows over a range of the vocabulary: logits again, their gradient dz, and dh += dz W, a block
// of weights at a time. Both products use the block while it is in second-level cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common.h"
#include "logprobs/gradient_sums.h"
#include "logprobs/logits.h"

namespace rlhf::logprobs {
namespace {

// The softmax gradient of a tile of logits while it is in cache, as the left operand of dh = dz W:
//   dz_v = (a (1[v = y] - p_v) - b p_v (log p_v + H)) softcap'(z_v) / T
// with a, b the gradients of a row's log-prob and entropy. The product may take dz rounded to bf16. The label's entry,
// and the few others that hold a large share of a row's gradient, do not go that way: they are given to `axpy`, which
// adds them in float, and are 0 in the tile. So p_y - 1 is never rounded, and what is rounded is small.

// A panel's rows and where their gradient goes.
struct PanelGradient {
    RowGradients rows;
    float* d_hidden;
    std::int64_t d_hidden_stride;
};

RLHF_INLINE float cap_slope(float z, const Projection& projection) {  // softcap'(z) / T of a capped, scaled logit
    const float t = projection.softcap > 0 ? z * (projection.temperature / projection.softcap) : 0.0f;
    return (1 - t * t) / projection.temperature;
}

// The label's entries that this tile holds go to d_hidden; their logits become so low that p is 0.
template <class P, class Source>
RLHF_TARGET void take_label_gradients(const Projection& projection, const WeightBlock<P, Source>& weights,
                                      const std::int64_t* labels, std::int64_t present, float* z,
                                      const PanelGradient& gradient) {
    const RowGradients& g = gradient.rows;
    for (std::int64_t lane = 0; lane < present; ++lane) {
        const std::int64_t row = labels[lane] - weights.first;
        if (row < 0 || row >= weights.rows) continue;
        float& logit = z[row * PanelPlan<typename P::Isa>::kRows + lane];
        const float logprob = std::max((logit - g.max[lane]) - g.log_sum[lane], kFloor);
        const float value = -g.d_logprob[lane] * std::expm1(logprob) -
                            g.d_entropy[lane] * std::exp(logprob) * (logprob + g.entropy[lane]);
        axpy<P>(value * cap_slope(logit, projection), weights.data + row * weights.stride, projection.hidden_size,
                gradient.d_hidden + lane * gradient.d_hidden_stride);
        logit = g.max[lane] + kFloor;
    }
}

// The constants of one group of lanes
template <class Isa>
struct GroupGradient {
    using F = typename Isa::F;
    F max, log_sum, entropy, d_logprob, d_entropy, limit, cap, scale;

    RLHF_TARGET GroupGradient(const Projection& projection, const RowGradients& rows, std::int64_t lane)
        : max(Isa::load(rows.max + lane)),
          log_sum(Isa::load(rows.log_sum + lane)),
          entropy(Isa::load(rows.entropy + lane)),
          d_logprob(Isa::load(rows.d_logprob + lane)),
          d_entropy(Isa::load(rows.d_entropy + lane)),
          limit(Isa::load(rows.limit + lane)),
          cap(Isa::set1(projection.softcap > 0 ? projection.temperature / projection.softcap : 0.0f)),
          scale(Isa::set1(1 / projection.temperature)) {}

    RLHF_INLINE F entry(F z) const {  // dz of a token that is not the label
        const F logprob = floored<Isa>((z - max) - log_sum);
        const F factor = Isa::fma(d_entropy, logprob + entropy, d_logprob);
        const F capped = Isa::max(Isa::set1(kLowest), z) * cap;  // -inf times a cap of 0 would be NaN
        return (Isa::set1(0.0f) - exp<Isa>(logprob) * factor) * (scale - scale * capped * capped);
    }
};

// z (rows of the block, rows of a full panel) -> cells (steps, rows of a full panel)
template <class P, class Source>
RLHF_TARGET void gradient_tile(const Projection& projection, const WeightBlock<P, Source>& weights, int groups,
                               const float* z, const PanelGradient& gradient, typename P::Cell* cells) {
    using Isa = typename P::Isa;
    constexpr std::int64_t width = PanelPlan<Isa>::kRows;
    for (std::int64_t lane = 0; lane < groups * Isa::kLanes; lane += Isa::kLanes) {
        const GroupGradient<Isa> group(projection, gradient.rows, lane);
        float* d_hidden = gradient.d_hidden + lane * gradient.d_hidden_stride;
        for (std::int64_t r = 0; r < step_count<P>(weights.rows) * P::kDepth; r += P::kDepth) {
            typename P::F entries[P::kDepth];
            for (int i = 0; i < P::kDepth; ++i) {
                entries[i] = Isa::set1(0.0f);
                if (r + i >= weights.rows) continue;
                entries[i] = group.entry(Isa::load(z + (r + i) * width + lane));
                const unsigned large = P::exceeds(entries[i], group.limit);
                if (large != 0) {
                    take_large<P>(large, weights.data + (r + i) * weights.stride, projection.hidden_size, d_hidden,
                                  gradient.d_hidden_stride, entries[i]);
                }
            }
            P::store(cells + r / P::kDepth * width + lane, P::round(entries));
        }
    }
}

inline RowGradients from_row(const RowGradients& g, std::int64_t row) {
    return {g.max + row,       g.log_sum + row,   g.entropy + row,
            g.d_logprob + row, g.d_entropy + row, g.limit + row};
}

template <class P, class Source>
RLHF_TARGET void backward(const BackwardTask& task) {
    using Isa = typename P::Isa;
    constexpr std::int64_t width = PanelPlan<Isa>::kRows;
    [[maybe_unused]] const Registers<P> registers{};
    const Projection& projection = *task.projection;
    const std::int64_t block = block_rows<P>(projection.hidden_size);
    const std::int64_t d_stride = gradient_stride<Isa>(projection.hidden_size);
    const PanelPlan<Isa> plan(task.rows);
    WeightBlock<P, Source> weights(task.weight, projection.hidden_size);
    GradientSums<P, Source> sums(task.d_hidden, task.rows, projection.hidden_size);
    alignas(64) float z[kBlock<P> * width];
    alignas(64) typename P::Cell cells[kBlock<P> * width / P::kDepth];
    typename P::F top[Isa::kGroups];
    Prefetch none;

    for (std::int64_t first = task.first; first < task.last; first += block) {
        weights.set(first, std::min(block, task.last - first));
        sums.begin(weights);
        for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
            const std::int64_t row = plan.first_row(panel);
            const int groups = plan.group_count(panel);
            const PanelGradient gradient{from_row(task.gradients, row), task.d_hidden + row * d_stride, d_stride};
            logits_tile(projection, weights, task.panels, row, groups, none, z, top);
            const std::int64_t present = std::min<std::int64_t>(task.rows - row, groups * Isa::kLanes);
            take_label_gradients(projection, weights, task.labels + row, present, z, gradient);
            gradient_tile(projection, weights, groups, z, gradient, cells);
            sums.add(cells, row, groups);
        }
        sums.finish();
    }
}

}  // namespace
}  // namespace rlhf::logprobs
