// A tile of logits in tile registers: the weights are left operands where they lie, the panel is the right one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "logprobs/logits.h"
#include "logprobs/tile_product.h"

namespace rlhf {
namespace {

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
                              const TileProduct::Cell* panel) const {
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
                               const TileProduct::Cell* panel, float* z) {
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
RLHF_TARGET void tile_panel(const TileRows& rows, const TileProduct::Cell* panel, const float* bias, float scale,
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
                                                  const TileProduct::Cell* panel, int groups,
                                                  std::int64_t hidden_size, const float* bias, float scale,
                                                  Prefetch& prefetch, float* z, __m512* top) {
    const auto tile = groups == 1 ? tile_panel<1> : tile_panel<2>;
    tile({weight, stride, rows, hidden_size}, panel, bias, scale, prefetch, z, top);
}

}  // namespace
}  // namespace rlhf
