// The gradient of each row's log-prob with respect to its hidden state, in the forward pass: as in flash attention (Dao
// et al. 2022), the weighted sum of the rows of W is kept relative to the running maximum m and rescaled when m grows.
// With f = softcap'(z) / T and sums over the tokens other than the label y,
//   d log p_y / dh = (1 - p_y) f_y W_y - sum_v p_v f_v W_v,   1 - p_y = sum_v e^(z_v - m) / sum_all e^(z - m):
// the label's token is left out here and joined at the end, so that 1 - p_y has no cancellation and is never rounded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common.h"
#include "logprobs/forward.h"
#include "logprobs/gradient_sums.h"
#include "logprobs/logits.h"

namespace rlhf::logprobs {
namespace {

template <class Isa>
RLHF_TARGET typename Isa::F largest_of_group(const float* z, std::int64_t rows, std::int64_t lane) {
    auto largest = Isa::set1(kLowest);
    for (std::int64_t r = 0; r < rows; ++r) {
        largest = Isa::max(Isa::load(z + r * PanelPlan<Isa>::kRows + lane), largest);
    }
    return largest;
}

// The logits of the labels in vocabulary [first, first + rows) are written out and become -inf, which has no weight.
template <class Isa>
RLHF_TARGET void take_label_logits(const std::int64_t* labels, std::int64_t present, std::int64_t first,
                                   std::int64_t rows, float* z, typename Isa::F* top, float* label_logits) {
    for (std::int64_t lane = 0; lane < present; ++lane) {
        const std::int64_t r = labels[lane] - first;
        if (r < 0 || r >= rows) continue;
        float& logit = z[r * PanelPlan<Isa>::kRows + lane];
        label_logits[lane] = logit;
        logit = -std::numeric_limits<float>::infinity();
        const std::int64_t group = lane / Isa::kLanes;
        top[group] = largest_of_group<Isa>(z, rows, group * Isa::kLanes);
    }
}

// What remains in the tile: e^(z-m) times the slope of the softcap, 1 - (z T / c)^2.
template <class Isa>
struct KeepWeights {
    float* z;
    bool capped;
    typename Isa::F cap;

    RLHF_TARGET KeepWeights(const Projection& projection, float* tile)
        : z(tile), capped(projection.softcap > 0), cap(Isa::set1(projection.temperature / projection.softcap)) {}

    RLHF_INLINE void operator()(std::int64_t at, typename Isa::F logit, typename Isa::F e) const {
        if (capped) {
            const auto t = Isa::max(Isa::set1(-1.0f), logit * cap);  // the label's -inf squared times 0 would be NaN
            e = e - e * t * t;
        }
        Isa::store(z + at, e);
    }
};

// sums of each row *= its factor, where that is not 1: few maxima grow after the first blocks
template <class Isa>
RLHF_TARGET void rescale(typename Isa::F factor, float* sums, std::int64_t stride) {
    float factors[Isa::kLanes];
    Isa::store(factors, factor);
    for (int lane = 0; lane < Isa::kLanes; ++lane, sums += stride) {
        if (factors[lane] == 1.0f) continue;
        for (std::int64_t h = 0; h < stride; h += Isa::kLanes) {
            Isa::store(sums + h, Isa::load(sums + h) * Isa::set1(factors[lane]));
        }
    }
}

// A group's weights (rows of the block, rows of a full panel) -> cells (steps, rows of a full panel). Those above
// `limit` do not pass: they are added as they are to `sums`, which start at the group's first row.
template <class P, class Source>
RLHF_TARGET void weights_to_cells(const float* z, std::int64_t lane, typename P::F limit,
                                  const WeightBlock<P, Source>& weights, std::int64_t hidden_size, float* sums,
                                  std::int64_t stride, typename P::Cell* cells) {
    using Isa = typename P::Isa;
    constexpr std::int64_t width = PanelPlan<Isa>::kRows;
    for (std::int64_t r = 0; r < step_count<P>(weights.rows) * P::kDepth; r += P::kDepth) {
        typename P::F entries[P::kDepth];
        for (int i = 0; i < P::kDepth; ++i) {
            entries[i] = Isa::set1(0.0f);
            if (r + i >= weights.rows) continue;
            entries[i] = Isa::load(z + (r + i) * width + lane);
            const unsigned large = P::exceeds(entries[i], limit);
            if (large != 0) {
                take_large<P>(large, weights.data + (r + i) * weights.stride, hidden_size, sums, stride, entries[i]);
            }
        }
        P::store(cells + r / P::kDepth * width + lane, P::round(entries));
    }
}

// z, the logits of a panel whose rows start at `row` -> cells; all sums over the vocabulary are done but the product.
template <class P, class Source>
RLHF_TARGET void softmax_tile(const DirectionsTask& task, const WeightBlock<P, Source>& weights, std::int64_t row,
                              int groups, float* z, typename P::F* top, typename P::Cell* cells) {
    using Isa = typename P::Isa;
    const std::int64_t hidden_size = task.projection->hidden_size, stride = gradient_stride<Isa>(hidden_size);
    const std::int64_t present = std::min<std::int64_t>(task.rows - row, groups * Isa::kLanes);
    const KeepWeights<Isa> keep(*task.projection, z);
    take_label_logits<Isa>(task.labels + row, present, weights.first, weights.rows, z, top, task.label_logits + row);
    for (int g = 0; g < groups; ++g) {
        const std::int64_t lane = g * Isa::kLanes;
        float* sums = task.sums + (row + lane) * stride;
        rescale<Isa>(add_tile<Isa>(z, weights.rows, g, top[g], task.statistics, row, keep), sums, stride);
        const auto limit = Isa::load(task.statistics.sum + row + lane) * Isa::set1(kLargeShare);
        weights_to_cells(z, lane, limit, weights, hidden_size, sums, stride, cells);
    }
}

template <class P, class Source>
RLHF_TARGET void directions(const DirectionsTask& task) {
    using Isa = typename P::Isa;
    constexpr std::int64_t width = PanelPlan<Isa>::kRows;
    [[maybe_unused]] const Registers<P> registers{};
    const Projection& projection = *task.projection;
    const std::int64_t block = block_rows<P>(projection.hidden_size);
    const PanelPlan<Isa> plan(task.rows);
    WeightBlock<P, Source> weights(task.weight, projection.hidden_size);
    GradientSums<P, Source> gradient(task.sums, task.rows, projection.hidden_size);
    alignas(64) float z[kBlock<P> * width];
    alignas(64) typename P::Cell cells[kBlock<P> * width / P::kDepth];
    typename P::F top[Isa::kGroups];
    Prefetch none;

    reset<P>(task.statistics, task.rows);
    for (std::int64_t first = task.first; first < task.last; first += block) {
        weights.set(first, std::min(block, task.last - first));
        gradient.begin(weights);
        for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
            const std::int64_t row = plan.first_row(panel);
            const int groups = plan.group_count(panel);
            logits_tile(projection, weights, task.panels, row, groups, none, z, top);
            softmax_tile(task, weights, row, groups, z, top, cells);
            gradient.add(cells, row, groups);
        }
        gradient.finish();
    }
}

}  // namespace
}  // namespace rlhf::logprobs
