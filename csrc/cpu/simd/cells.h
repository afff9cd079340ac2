// Cells of two bf16 elements, 16 to a register: how they are made from rows, and turned.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa_avx512bf16.h"

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

}  // namespace
}  // namespace rlhf
