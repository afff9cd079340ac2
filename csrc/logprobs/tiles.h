// Log-probs of bf16 in tile registers: what logits.h and gradient_sums.h do with vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "isa/amx.h"
#include "logprobs/gradient_sums.h"
#include "logprobs/logits.h"

namespace rlhf::logprobs {
namespace {

// Panels of two groups: with 32 vocabulary rows they fill four tiles of sums, and four are left for the operands.
struct TilePanelProduct : PairProduct {
    struct Isa : Avx512 {
        static constexpr int kGroups = 2, kRows = 32;
    };
};

template <>
struct Registers<TilePanelProduct> : Tiles {};

template <>
constexpr int kStepsAtOnce<TilePanelProduct> = 16;

// The inner products of dz W are so long: dh comes and goes once for each block.
template <>
constexpr std::int64_t kBlock<TilePanelProduct> = 256;

constexpr std::int64_t kTileDepth = 32;                       // elements of an inner product that a tile holds
constexpr std::int64_t kTileBytes = Tiles::kRows * Tiles::kRowBytes;

// A tile of logits in tile registers: the weights are left operands where they lie, the panel is the right one.

// Most tiles of an inner product that are summed before the next rows are: their part of the panel stays in first-level
// cache meanwhile.
constexpr std::int64_t kTileSegment = 20;

// Rows of a block of weights, from which no element beyond `count` rows or `hidden_size` elements is read.
struct TileRows {
    const std::uint16_t* data;
    std::int64_t stride, count, hidden_size;

    // sums += rows [first, first + 16 R) * panel, over tiles [begin, end) of the hidden size
    template <int R, int G>
    RLHF_INLINE void multiply(std::int64_t first, std::int64_t begin, std::int64_t end,
                              const PairProduct::Cell* panel) const {
        const bool all_rows = first + 16 * R <= count;
        const std::int64_t whole = all_rows ? std::clamp(hidden_size / kTileDepth, begin, end) : begin;
        const std::uint16_t* const rows = data + first * stride;
        multiply_tiles<R, G>(rows + begin * kTileDepth, stride * 2, panel + begin * G * 256, G * Tiles::kRowBytes,
                             whole - begin);
        for (std::int64_t tile = whole; tile < end; ++tile) {
            alignas(64) char copy[2 * kTileBytes] = {};
            const std::int64_t elements = std::min(hidden_size - tile * kTileDepth, kTileDepth);
            for (std::int64_t r = 0; r < std::min<std::int64_t>(16 * R, count - first); ++r) {
                std::memcpy(copy + r * Tiles::kRowBytes, rows + r * stride + tile * kTileDepth,
                            static_cast<std::size_t>(elements) * sizeof *rows);
            }
            multiply_tiles<R, G>(copy, Tiles::kRowBytes, panel + tile * G * 256, G * Tiles::kRowBytes, 1);
        }
    }
};

// z = z * scale + bias for `rows` rows, and the largest so far per lane
template <int G>
RLHF_INLINE void finish_logits(std::int64_t rows, const float* bias, float scale, float* z, __m512* top) {
    using Isa = TilePanelProduct::Isa;
    for (std::int64_t r = 0; r < rows; ++r) {
        const auto shift = Isa::set1(bias[r] * scale);
        RLHF_UNROLL
        for (int g = 0; g < G; ++g) {
            float* const cell = z + (r * Isa::kGroups + g) * Isa::kLanes;
            const auto logit = Isa::fma(Isa::load(cell), Isa::set1(scale), shift);
            Isa::store(cell, logit);
            top[g] = Isa::max(logit, top[g]);
        }
    }
}

template <int R, int G>
RLHF_TARGET void multiply_rows(const TileRows& rows, std::int64_t first, std::int64_t begin, std::int64_t end,
                               const PairProduct::Cell* panel, float* z) {
    constexpr std::int64_t width = PanelPlan<TilePanelProduct::Isa>::kRows;
    if (begin == 0) {
        zero_sums<R, G>();
    } else {
        load_sums<R, G>(z, width);
    }
    rows.multiply<R, G>(first, begin, end, panel);
    store_sums<R, G>(z, width);
}

template <int G>
RLHF_TARGET void tile_panel(const TileRows& rows, const PairProduct::Cell* panel, const float* bias, float scale,
                            Prefetch& prefetch, float* z, __m512* top) {
    constexpr std::int64_t width = PanelPlan<TilePanelProduct::Isa>::kRows;
    const std::int64_t tiles = (rows.hidden_size + kTileDepth - 1) / kTileDepth;
    const std::int64_t segments = (tiles + kTileSegment - 1) / kTileSegment;
    for (std::int64_t s = 0; s < segments; ++s) {
        const std::int64_t begin = s * tiles / segments, end = (s + 1) * tiles / segments;
        for (std::int64_t r = 0; r < rows.count; r += 32) {
            const std::int64_t count = std::min<std::int64_t>(rows.count - r, 32);
            const auto multiply = count > 16 ? multiply_rows<2, G> : multiply_rows<1, G>;
            multiply(rows, r, begin, end, panel, z + r * width);
            if (s + 1 < segments) continue;
            prefetch.step();
            finish_logits<G>(count, bias + r, scale, z + r * width, top);
        }
    }
}

template <>
RLHF_TARGET void multiply_panel<TilePanelProduct>(const std::uint16_t* weight, std::int64_t stride, std::int64_t rows,
                                                  const PairProduct::Cell* panel, int groups,
                                                  std::int64_t hidden_size, const float* bias, float scale,
                                                  Prefetch& prefetch, float* z, __m512* top) {
    const auto tile = groups == 1 ? tile_panel<1> : tile_panel<2>;
    tile({weight, stride, rows, hidden_size}, panel, bias, scale, prefetch, z, top);
}

// dh += dz W in tile registers: dz, turned so that a row of the panel is a row in memory, is the left operand. All
// panels of a block are kept, so that each strip of weights is rearranged into first-level cache and meets them there,
// and dh comes and goes once for each block.

// d_hidden (16 R rows, 16 G elements) += left (rows [row][step]) strip
template <int R, int G>
RLHF_TARGET void add_tiles(const std::uint32_t* left, std::int64_t left_stride, const std::uint32_t* strip,
                           std::int64_t steps, float* d_hidden, std::int64_t stride) {
    load_sums<R, G>(d_hidden, stride);
    multiply_tiles<R, G>(left, left_stride * 4, strip, G * Tiles::kRowBytes, steps / 16);
    store_sums<R, G>(d_hidden, stride);
}

template <class Source>
class GradientSums<TilePanelProduct, Source> {
    using P = TilePanelProduct;
    static constexpr std::int64_t kWidth = PanelPlan<P::Isa>::kRows, kLeftStride = kBlock<P> / P::kDepth;

   public:
    GradientSums(float* sums, std::int64_t rows, std::int64_t hidden_size)
        : sums_(sums), rows_(padded_rows<P>(rows)), hidden_size_(hidden_size), left_(rows_ * kLeftStride),
          strip_(kLeftStride * kWidth) {}

    void begin(const WeightBlock<P, Source>& weights) { weights_ = &weights; }

    RLHF_TARGET void add(const std::uint32_t* cells, std::int64_t row, int groups) {
        for (std::int64_t lane = 0; lane < groups * 16; lane += 16) {
            for (std::int64_t step = 0; step < step_count<P>(weights_->rows); step += 16) {
                transpose_cells(cells + step * kWidth + lane, kWidth, left_.data() + (row + lane) * kLeftStride + step,
                                kLeftStride);
            }
        }
    }

    RLHF_TARGET void finish() {
        const std::int64_t stride = gradient_stride<P::Isa>(hidden_size_);
        for (std::int64_t h = 0; h < stride; h += kWidth) {
            if (stride - h == 16) {
                add_strip<1>(h, stride);
            } else {
                add_strip<2>(h, stride);
            }
        }
    }

   private:
    // As pack_strips has it, elements [h, h + 16 G)
    template <int G>
    RLHF_TARGET void pack_strip(std::int64_t h, std::int64_t steps) {
        const std::int64_t last = weights_->rows - 1;
        for (std::int64_t step = 0; step < steps; ++step) {
            const std::uint16_t* const even = weights_->data + std::min(2 * step, last) * weights_->stride;
            const std::uint16_t* const odd = weights_->data + std::min(2 * step + 1, last) * weights_->stride;
            RLHF_UNROLL
            for (int g = 0; g < G; ++g) {
                const std::int64_t at = h + 16 * g;
                const auto there = static_cast<__mmask16>(lanes_below(hidden_size_ - at));
                _mm512_store_si512(strip_.data() + (step * G + g) * 16,
                                   zip(_mm256_maskz_loadu_epi16(there, even + at),
                                       _mm256_maskz_loadu_epi16(there, odd + at)));
            }
        }
    }

    template <int G>
    RLHF_TARGET void add_strip(std::int64_t h, std::int64_t stride) {
        const std::int64_t steps = step_count<P>(weights_->rows);
        pack_strip<G>(h, steps);
        for (std::int64_t row = 0; row < rows_; row += 32) {
            const auto add = rows_ - row == 16 ? add_tiles<1, G> : add_tiles<2, G>;
            add(left_.data() + row * kLeftStride, kLeftStride, strip_.data(), steps, sums_ + row * stride + h, stride);
        }
    }

    float* sums_;
    std::int64_t rows_, hidden_size_;
    const WeightBlock<P, Source>* weights_ = nullptr;
    Buffer<std::uint32_t> left_;   // dz of all panels: [row][step]
    Buffer<std::uint32_t> strip_;  // [step][element]
};

}  // namespace
}  // namespace rlhf::logprobs
