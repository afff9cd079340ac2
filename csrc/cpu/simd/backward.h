// Gradient of some hidden rows over a range of the vocabulary: logits again, their gradient dz, and dh += dz W, a block
// of weights at a time. Both products use the block while it is in second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../buffer.h"
#include "gradient.h"

namespace rlhf {
namespace {

template <class Isa>
std::int64_t gradient_stride(std::int64_t hidden_size) {
    return (hidden_size + Isa::kLanes - 1) / Isa::kLanes * Isa::kLanes;
}

// A block of weight rows as the right operand of dz W: strips of kGroups vectors of hidden elements, each [step][lane],
// a step being kDepth vocabulary rows. Elements beyond the hidden size are 0; a row beyond the block repeats the one
// before, and its dz is 0.
template <class P>
RLHF_TARGET void pack_strips(const typename P::Stored* weight, std::int64_t stride, std::int64_t rows,
                             std::int64_t hidden_size, typename P::Cell* out) {
    using Isa = typename P::Isa;
    const std::int64_t size = gradient_stride<Isa>(hidden_size), steps = step_count<P>(rows);
    for (std::int64_t step = 0; step < steps; ++step) {
        const typename P::Stored* sources[P::kDepth];
        for (int i = 0; i < P::kDepth; ++i) {
            sources[i] = weight + std::min<std::int64_t>(step * P::kDepth + i, rows - 1) * stride;
        }
        for (std::int64_t h = 0; h < size; h += Isa::kLanes) {
            typename P::Stored tail[P::kDepth][Isa::kLanes] = {};
            const typename P::Stored* at[P::kDepth];
            for (int i = 0; i < P::kDepth; ++i) {
                at[i] = sources[i] + h;
                if (h + Isa::kLanes <= hidden_size) continue;
                std::copy_n(at[i], hidden_size - h, tail[i]);
                at[i] = tail[i];
            }
            const std::int64_t strip = h / PanelPlan<Isa>::kRows * PanelPlan<Isa>::kRows;
            const std::int64_t width = std::min<std::int64_t>(size - strip, PanelPlan<Isa>::kRows);
            P::store(out + strip * steps + step * width + (h - strip), P::zip(at));
        }
    }
}

// d_hidden (rows of the panel, one strip) += cells^T strip
template <class P, int G>
RLHF_TARGET void add_strip(const typename P::Cell* cells, const typename P::Cell* strip, std::int64_t steps,
                           std::int64_t rows, float* d_hidden, std::int64_t stride) {
    using Isa = typename P::Isa;
    constexpr int R = Isa::kRows;
    constexpr std::int64_t cell = sizeof(typename P::Cell);
    for (std::int64_t row = 0; row < rows; row += R, d_hidden += R * stride) {
        typename P::F sum[R][G];
        RLHF_UNROLL
        for (int r = 0; r < R; ++r) {
            RLHF_UNROLL
            for (int g = 0; g < G; ++g) {
                sum[r][g] = Isa::set1(0.0f);  // a block's sum by itself first: smaller rounding errors
                RLHF_PREFETCH(d_hidden + r * stride + g * Isa::kLanes);
            }
        }
        multiply<P, R, G>(reinterpret_cast<const char*>(cells + row), cell, cell * PanelPlan<Isa>::kRows, strip,
                          G * Isa::kLanes, steps, sum);
        RLHF_UNROLL
        for (int r = 0; r < R; ++r) {
            RLHF_UNROLL
            for (int g = 0; g < G; ++g) {
                float* at = d_hidden + r * stride + g * Isa::kLanes;
                Isa::store(at, Isa::load(at) + sum[r][g]);
            }
        }
    }
}

template <class P>
RLHF_TARGET void add_product(const typename P::Cell* cells, const typename P::Cell* strips, std::int64_t steps,
                             std::int64_t rows, float* d_hidden, std::int64_t stride) {
    using Isa = typename P::Isa;
    for (std::int64_t h = 0; h < stride; h += PanelPlan<Isa>::kRows) {
        const std::int64_t groups = std::min<std::int64_t>((stride - h) / Isa::kLanes, Isa::kGroups);
        const auto add = groups == 1 ? add_strip<P, 1> : groups == 2 ? add_strip<P, 2> : add_strip<P, Isa::kGroups>;
        add(cells, strips + h * steps, steps, rows, d_hidden + h, stride);
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
    const Projection& projection = *task.projection;
    const std::int64_t block = block_rows<P>(projection.hidden_size);
    const std::int64_t d_stride = gradient_stride<Isa>(projection.hidden_size);
    const PanelPlan<Isa> plan(task.rows);
    WeightBlock<P, Source> weights(task.weight, projection.hidden_size);
    const Buffer<typename P::Cell> strips(step_count<P>(block) * d_stride);
    alignas(64) float z[kBlock * width];
    alignas(64) typename P::Cell cells[kBlock * width / P::kDepth];
    typename P::F top[Isa::kGroups];
    Prefetch none;  // pack_strips has just read the whole block

    for (std::int64_t first = task.first; first < task.last; first += block) {
        weights.set(first, std::min(block, task.last - first));
        pack_strips<P>(weights.data, weights.stride, weights.rows, projection.hidden_size, strips.data());
        for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
            const std::int64_t row = plan.first_row(panel);
            const int groups = plan.group_count(panel);
            const PanelGradient gradient{from_row(task.gradients, row), task.d_hidden + row * d_stride, d_stride};
            logits_tile(projection, weights, task.panels, row, groups, none, z, top);
            const std::int64_t present = std::min<std::int64_t>(task.rows - row, groups * Isa::kLanes);
            take_label_gradients(projection, weights, task.labels + row, present, z, gradient);
            gradient_tile(projection, weights, groups, z, gradient, cells);
            add_product<P>(cells, strips.data(), step_count<P>(weights.rows), groups * Isa::kLanes, gradient.d_hidden,
                           d_stride);
        }
    }
}

}  // namespace
}  // namespace rlhf
