// dh += dz W for a tile of dz, called cells, and the block of weights it belongs to, while both are in cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"
#include "isa/product.h"
#include "logprobs/panels.h"

namespace rlhf::logprobs {
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

// dh += dz W for the panels of a block of weights, between `begin` and `finish`.
template <class P, class Source>
class GradientSums {
   public:
    GradientSums(float* sums, std::int64_t, std::int64_t hidden_size)
        : sums_(sums), hidden_size_(hidden_size), stride_(gradient_stride<typename P::Isa>(hidden_size)),
          strips_(step_count<P>(block_rows<P>(hidden_size)) * stride_) {}

    RLHF_TARGET void begin(const WeightBlock<P, Source>& weights) {
        pack_strips<P>(weights.data, weights.stride, weights.rows, hidden_size_, strips_.data());
        steps_ = step_count<P>(weights.rows);
    }
    // cells (steps, rows of a full panel), of a panel that starts at `row`
    RLHF_TARGET void add(const typename P::Cell* cells, std::int64_t row, int groups) {
        add_product<P>(cells, strips_.data(), steps_, groups * P::Isa::kLanes, sums_ + row * stride_, stride_);
    }
    void finish() {}

   private:
    float* sums_;
    std::int64_t hidden_size_, stride_, steps_ = 0;
    Buffer<typename P::Cell> strips_;
};

// Entries of dz that hold a large share of a row's gradient: rounding them to bf16 would show in the result, so they
// are added to it one by one, in float.

// d_hidden += value * weight row
template <class P>
RLHF_TARGET void axpy(float value, const typename P::Stored* weight, std::int64_t hidden_size, float* d_hidden) {
    for (std::int64_t h = 0; h < hidden_size; ++h) d_hidden[h] += value * to_float(weight[h]);
}

// Entries above the limit go to d_hidden and become 0; there are none in most tiles.
template <class P>
RLHF_TARGET void take_large(unsigned large, const typename P::Stored* weight, std::int64_t hidden_size,
                            float* d_hidden, std::int64_t d_hidden_stride, typename P::F& entries) {
    float values[P::Isa::kLanes];
    P::Isa::store(values, entries);
    for (int lane = 0; lane < P::Isa::kLanes; ++lane) {
        if ((large >> lane & 1) == 0) continue;
        axpy<P>(values[lane], weight, hidden_size, d_hidden + lane * d_hidden_stride);
        values[lane] = 0;
    }
    entries = P::Isa::load(values);
}

}  // namespace
}  // namespace rlhf::logprobs
