// dh += dz W in tile registers: dz, turned so that a row of the panel is a row in memory, is the left operand.
#pragma once

#include <cstdint>

#include "strips.h"
#include "tile_product.h"
#include "weight_block.h"

namespace rlhf {
namespace {

// 16 x 16 cells, `stride` apart -> their transpose
RLHF_INLINE void transpose_cells(const std::uint32_t* from, std::int64_t stride, std::uint32_t* to,
                                 std::int64_t to_stride) {
    RLHF_UNROLL
    for (int quad = 0; quad < 4; ++quad) {
        __m512i v[4];  // rows i, i + 4, i + 8 and i + 12 of these four columns
        RLHF_UNROLL
        for (int i = 0; i < 4; ++i) {
            const auto part = [&](int row) {
                return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + row * stride + quad * 4));
            };
            v[i] = _mm512_castsi128_si512(part(i));
            v[i] = _mm512_inserti32x4(v[i], part(i + 4), 1);
            v[i] = _mm512_inserti32x4(v[i], part(i + 8), 2);
            v[i] = _mm512_inserti32x4(v[i], part(i + 12), 3);
        }
        const __m512i low = _mm512_unpacklo_epi32(v[0], v[1]), low2 = _mm512_unpacklo_epi32(v[2], v[3]);
        const __m512i high = _mm512_unpackhi_epi32(v[0], v[1]), high2 = _mm512_unpackhi_epi32(v[2], v[3]);
        std::uint32_t* const at = to + quad * 4 * to_stride;
        _mm512_storeu_si512(at, _mm512_unpacklo_epi64(low, low2));
        _mm512_storeu_si512(at + to_stride, _mm512_unpackhi_epi64(low, low2));
        _mm512_storeu_si512(at + 2 * to_stride, _mm512_unpacklo_epi64(high, high2));
        _mm512_storeu_si512(at + 3 * to_stride, _mm512_unpackhi_epi64(high, high2));
    }
}

constexpr std::int64_t kLeftStride = kBlock / TileProduct::kDepth;

template <int R, int G>
RLHF_TARGET void add_tiles(const std::uint32_t* left, const std::uint32_t* strip, std::int64_t tiles, float* d_hidden,
                           std::int64_t stride) {
    load_sums<R, G>(d_hidden, stride);
    multiply_tiles<R, G>(reinterpret_cast<const char*>(left), kLeftStride * 4, strip, tiles);
    store_sums<R, G>(d_hidden, stride);
}

template <int R>
RLHF_TARGET void add_panel(const std::uint32_t* left, const std::uint32_t* strips, std::int64_t steps, float* d_hidden,
                           std::int64_t stride) {
    for (std::int64_t h = 0; h < stride; h += 32) {
        const auto add = stride - h == 16 ? add_tiles<R, 1> : add_tiles<R, 2>;
        add(left, strips + h * steps, steps / 16, d_hidden + h, stride);
    }
}

template <>
RLHF_TARGET void add_product<TilePanelProduct>(const std::uint32_t* cells, const std::uint32_t* strips,
                                               std::int64_t steps, std::int64_t rows, float* d_hidden,
                                               std::int64_t stride) {
    constexpr std::int64_t width = PanelPlan<TilePanelProduct::Isa>::kRows;
    alignas(64) std::uint32_t left[width * kLeftStride];
    for (std::int64_t lane = 0; lane < rows; lane += 16) {
        for (std::int64_t step = 0; step < steps; step += 16) {
            transpose_cells(cells + step * width + lane, width, left + lane * kLeftStride + step, kLeftStride);
        }
    }
    const auto add = rows == 16 ? add_panel<1> : add_panel<2>;
    add(left, strips, steps, d_hidden, stride);
}

}  // namespace
}  // namespace rlhf
