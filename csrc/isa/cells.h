// Cells of two bf16 elements, 16 to a register: how they are made from rows, and turned.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/avx512bf16.h"

namespace rlhf {
namespace {

// The lanes i < count of up to 32
inline std::uint32_t lanes_below(std::int64_t count) {
    return static_cast<std::uint32_t>((std::uint64_t{1} << std::clamp<std::int64_t>(count, 0, 32)) - 1);
}

// The elements of both in the halves of a cell
RLHF_INLINE __m512i zip(__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// 16 x 16 cells: within the four lanes of 128 bits, then between them
RLHF_INLINE void transpose(__m512i (&x)[16]) {
    __m512i y[16];
    RLHF_UNROLL
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    RLHF_UNROLL
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    RLHF_UNROLL
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(x[i], x[4 + i], 0x44), b = _mm512_shuffle_i32x4(x[i], x[4 + i], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0x44);
        const __m512i d = _mm512_shuffle_i32x4(x[8 + i], x[12 + i], 0xee);
        x[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        x[4 + i] = _mm512_shuffle_i32x4(a, c, 0xdd);
        x[8 + i] = _mm512_shuffle_i32x4(b, d, 0x88);
        x[12 + i] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

// The same from memory, rows `stride` apart, to memory, `to_stride` apart: half of the shuffles are part of the loads
RLHF_INLINE void transpose_cells(const std::uint32_t* from, std::int64_t stride, std::uint32_t* to,
                                 std::int64_t to_stride) {
    RLHF_UNROLL
    for (int quad = 0; quad < 4; ++quad) {
        __m512i v[4];  // rows i, i + 4, i + 8 and i + 12 of these four columns
        RLHF_UNROLL
        for (int i = 0; i < 4; ++i) {
            const auto* const at = reinterpret_cast<const __m128i*>(from + i * stride + quad * 4);
            v[i] = _mm512_castsi128_si512(_mm_loadu_si128(at));
            v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128(at + stride), 1);  // 4 rows of `stride` cells further on
            v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128(at + 2 * stride), 2);
            v[i] = _mm512_inserti32x4(v[i], _mm_loadu_si128(at + 3 * stride), 3);
        }
        const __m512i low = _mm512_unpacklo_epi32(v[0], v[1]), low2 = _mm512_unpacklo_epi32(v[2], v[3]);
        const __m512i high = _mm512_unpackhi_epi32(v[0], v[1]), high2 = _mm512_unpackhi_epi32(v[2], v[3]);
        std::uint32_t* const column = to + quad * 4 * to_stride;
        _mm512_storeu_si512(column, _mm512_unpacklo_epi64(low, low2));
        _mm512_storeu_si512(column + to_stride, _mm512_unpackhi_epi64(low, low2));
        _mm512_storeu_si512(column + 2 * to_stride, _mm512_unpacklo_epi64(high, high2));
        _mm512_storeu_si512(column + 3 * to_stride, _mm512_unpackhi_epi64(high, high2));
    }
}

}  // namespace
}  // namespace rlhf
