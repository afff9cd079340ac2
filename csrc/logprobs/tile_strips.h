// dh += dz W in tile registers: dz, turned so that a row of the panel is a row in memory, is the left operand. All
// panels of a block are kept, so that each strip of weights is rearranged into first-level cache and meets them there,
// and dh comes and goes once for each block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/cells.h"
#include "logprobs/strips.h"
#include "logprobs/tile_product.h"

namespace rlhf {
namespace {

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
}  // namespace rlhf
