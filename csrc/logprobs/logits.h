// A tile of logits: a block of vocabulary rows times a panel of hidden rows, kept in first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/product.h"
#include "isa/vectors.h"
#include "logprobs/kernels.h"
#include "logprobs/panels.h"

namespace rlhf::logprobs {
namespace {

// An inner product is summed in segments of about this many steps, whose sums are then added: the rounding error grows
// with the root of the segment, not of the whole.
constexpr std::int64_t kSegment = 128;
template <class P>
constexpr float kNoBias[kBlock<P>] = {};

// sum[r][g] over steps [first, last) of the hidden size, the odd element behind the last whole step included
template <class P, int R, int G>
RLHF_INLINE void multiply_segment(const char* rows, std::int64_t row_bytes, const typename P::Cell* panel,
                                  std::int64_t first, std::int64_t last, std::int64_t hidden_size,
                                  typename P::F (&sum)[R][G]) {
    constexpr std::int64_t lanes = G * P::Isa::kLanes;
    const std::int64_t whole = std::min(last, hidden_size / P::kDepth);
    RLHF_UNROLL
    for (int r = 0; r < R; ++r) {
        RLHF_UNROLL
        for (int g = 0; g < G; ++g) sum[r][g] = P::Isa::set1(0.0f);
    }
    constexpr std::int64_t step_bytes = sizeof(typename P::Cell);
    multiply<P, R, G>(rows + first * step_bytes, row_bytes, step_bytes, panel + first * lanes, lanes, whole - first,
                      sum);
    if (whole == last) return;
    RLHF_UNROLL
    for (int r = 0; r < R; ++r) {
        const auto b = P::broadcast_tail(rows + r * row_bytes + whole * step_bytes);
        RLHF_UNROLL
        for (int g = 0; g < G; ++g) {
            sum[r][g] = P::step(sum[r][g], P::load(panel + whole * lanes + g * P::Isa::kLanes), b);
        }
    }
}

// z[row][lane] = h W^T * scale + bias, and the largest so far per lane
template <class P, int R, int G>
RLHF_INLINE void tile_rows(const typename P::Stored* weight, std::int64_t stride, const typename P::Cell* panel,
                           std::int64_t hidden_size, const float* bias, float scale, float* z, typename P::F* top) {
    using Isa = typename P::Isa;
    const auto* rows = reinterpret_cast<const char*>(weight);
    const std::int64_t row_bytes = stride * static_cast<std::int64_t>(sizeof(typename P::Stored));
    const std::int64_t steps = step_count<P>(hidden_size), segments = (steps + kSegment - 1) / kSegment;
    typename P::F sum[R][G];
    std::int64_t s = 0;
    do {
        multiply_segment<P, R, G>(rows, row_bytes, panel, s * steps / segments, (s + 1) * steps / segments, hidden_size,
                                  sum);
        RLHF_UNROLL
        for (int r = 0; r < R; ++r) {
            RLHF_UNROLL
            for (int g = 0; g < G; ++g) {
                float* cell = z + (r * Isa::kGroups + g) * Isa::kLanes;
                if (s > 0) sum[r][g] = sum[r][g] + Isa::load(cell);
                if (s + 1 < segments) Isa::store(cell, sum[r][g]);
            }
        }
    } while (++s < segments);
    RLHF_UNROLL
    for (int r = 0; r < R; ++r) {
        const auto shift = Isa::set1(bias[r] * scale);
        RLHF_UNROLL
        for (int g = 0; g < G; ++g) {
            const auto logit = Isa::fma(sum[r][g], Isa::set1(scale), shift);
            Isa::store(z + (r * Isa::kGroups + g) * Isa::kLanes, logit);
            top[g] = Isa::max(logit, top[g]);
        }
    }
}

template <class P, int G>
RLHF_TARGET void tile_groups(const typename P::Stored* weight, std::int64_t stride, std::int64_t rows,
                             const typename P::Cell* panel, std::int64_t hidden_size, const float* bias, float scale,
                             Prefetch& prefetch, float* z, typename P::F* top) {
    constexpr int R = P::Isa::kRows;
    constexpr std::int64_t width = PanelPlan<typename P::Isa>::kRows;
    std::int64_t r = 0;
    for (; r + R <= rows; r += R) {
        prefetch.step();
        tile_rows<P, R, G>(weight + r * stride, stride, panel, hidden_size, bias + r, scale, z + r * width, top);
    }
    for (; r < rows; ++r) {
        tile_rows<P, 1, G>(weight + r * stride, stride, panel, hidden_size, bias + r, scale, z + r * width, top);
    }
}

// z (rows of the block, rows of a full panel) = panel W^T * scale + bias, and the largest so far per lane
template <class P>
RLHF_TARGET void multiply_panel(const typename P::Stored* weight, std::int64_t stride, std::int64_t rows,
                                const typename P::Cell* panel, int groups, std::int64_t hidden_size,
                                const float* bias, float scale, Prefetch& prefetch, float* z, typename P::F* top) {
    static_assert(P::Isa::kGroups == 3, "a panel has one, two or three groups");
    const auto tile = groups == 1 ? tile_groups<P, 1> : groups == 2 ? tile_groups<P, 2> : tile_groups<P, 3>;
    tile(weight, stride, rows, panel, hidden_size, bias, scale, prefetch, z, top);
}

// Caps and scales the tile where there is a softcap; the largest logits are found anew.
template <class Isa>
RLHF_TARGET void cap_tile(float* z, std::int64_t rows, int groups, float softcap, float temperature,
                          typename Isa::F* top) {
    for (int g = 0; g < groups; ++g) {
        typename Isa::F largest = Isa::set1(kLowest);
        for (std::int64_t r = 0; r < rows; ++r) {
            float* cell = z + (r * Isa::kGroups + g) * Isa::kLanes;
            const auto logit =
                tanh<Isa>(Isa::load(cell) * Isa::set1(1 / softcap)) * Isa::set1(softcap / temperature);
            Isa::store(cell, logit);
            largest = Isa::max(logit, largest);
        }
        top[g] = largest;
    }
}

// z (rows of the block, rows of a full panel) and the largest of each row of the panel, for `groups` groups from `row`
template <class P, class Source>
RLHF_TARGET void logits_tile(const Projection& projection, const WeightBlock<P, Source>& weights, const void* panels,
                             std::int64_t row, int groups, Prefetch& prefetch, float* z, typename P::F* top) {
    using Isa = typename P::Isa;
    const std::int64_t hidden_size = projection.hidden_size;
    const float* bias = projection.bias == nullptr ? kNoBias<P> : projection.bias + weights.first;
    const float scale = projection.softcap > 0 ? 1.0f : 1.0f / projection.temperature;
    for (int g = 0; g < groups; ++g) top[g] = Isa::set1(kLowest);
    multiply_panel<P>(weights.data, weights.stride, weights.rows, panel_of<P>(panels, row, hidden_size), groups,
                      hidden_size, bias, scale, prefetch, z, top);
    if (projection.softcap > 0) {
        cap_tile<Isa>(z, weights.rows, groups, projection.softcap, projection.temperature, top);
    }
}

}  // namespace
}  // namespace rlhf::logprobs
