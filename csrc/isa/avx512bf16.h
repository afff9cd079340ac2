// AVX-512 with bf16 dot products: 48 rows x 8 vocabulary entries in 24 of the 32 registers.
//
// Gained over AVX2, on one core: `linear_logprobs` of bf16 takes 1/1.7 of the time, a dot product being two elements of
// a lane at once, and `ppo_loss` of floats 1/1.5 (docs/kernels.md, "Instruction sets", has the commands).
#pragma once

#if !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"  // wrongly raised inside the intrinsics header (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#define RLHF_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#include "isa/vectors.h"

namespace rlhf {
namespace {

struct Avx512 {
    using F = __m512;
    typedef std::int32_t I __attribute__((vector_size(64)));
    typedef std::uint32_t U __attribute__((vector_size(64)));
    struct Sums {
        __m512d low, high;
    };
    static constexpr int kLanes = 16, kGroups = 3, kRows = 8;

    RLHF_INLINE static F load(const float* p) { return _mm512_loadu_ps(p); }
    RLHF_INLINE static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    RLHF_INLINE static F set1(float x) { return _mm512_set1_ps(x); }
    RLHF_INLINE static F from_bytes(const std::uint8_t* p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    }
    RLHF_INLINE static void add(Sums& sums, F x) {
        sums.low += _mm512_cvtps_pd(_mm512_castps512_ps256(x));
        sums.high += _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    }
    RLHF_INLINE static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    RLHF_INLINE static F max(F a, F b) { return _mm512_max_ps(a, b); }
    RLHF_INLINE static F min(F a, F b) { return _mm512_min_ps(a, b); }
    RLHF_INLINE static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    RLHF_INLINE static F times_power_of_2(F x, F n) { return _mm512_scalef_ps(x, n); }
    RLHF_INLINE static F widen(const std::uint16_t* p) {  // bf16
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    RLHF_INLINE static void narrow(std::uint16_t* p, F x) {  // to bf16
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x));
    }
    RLHF_INLINE static F copy_sign(F x, F sign) { return _mm512_or_ps(x, _mm512_and_ps(sign, set1(-0.0f))); }
    RLHF_INLINE static F to_float(I x) { return _mm512_cvtepi32_ps((__m512i)x); }
    RLHF_INLINE static I bits(F x) { return (I)x; }
    RLHF_INLINE static F from_bits(I x) { return (F)x; }
};

// Two bf16 elements a step, adjacent in the halves of a cell.
struct PairProduct {
    using Isa = Avx512;
    using F = __m512;
    using Operand = __m512i;
    using Cell = std::uint32_t;
    using Stored = std::uint16_t;
    static constexpr int kDepth = 2;

    RLHF_INLINE static Operand load(const Cell* cells) { return _mm512_loadu_si512(cells); }
    RLHF_INLINE static Operand broadcast(const void* cell) {
        int pair;
        std::memcpy(&pair, cell, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    RLHF_INLINE static Operand broadcast_tail(const void* cell) {
        return _mm512_set1_epi32(*static_cast<const std::uint16_t*>(cell));
    }
    RLHF_INLINE static F step(F sum, Operand a, Operand b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    RLHF_INLINE static Cell cell(const std::uint16_t* elements, int count) {
        return elements[0] | (count > 1 ? static_cast<Cell>(elements[1]) << 16 : 0);
    }
    RLHF_INLINE static Operand zip(const Stored* const (&rows)[2]) {
        return _mm512_or_si512(widen(rows[0]), _mm512_slli_epi32(widen(rows[1]), 16));
    }
    RLHF_INLINE static void store(Cell* cells, Operand x) { _mm512_storeu_si512(cells, x); }
    RLHF_INLINE static Operand round(const F (&x)[2]) {
        const auto low = (__m256i)_mm512_cvtneps_pbh(x[0]), high = (__m256i)_mm512_cvtneps_pbh(x[1]);
        return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
    }
    RLHF_INLINE static unsigned exceeds(F x, F limit) {
        return _mm512_cmp_ps_mask(_mm512_abs_ps(x), limit, _CMP_GT_OQ);
    }

   private:
    RLHF_INLINE static Operand widen(const Stored* elements) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements)));
    }
};

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

// Two vectors at a time, for what is done to each bf16 entry alone: 32 entries are the even ones and the odd
// ones, in which order they come out of their cells and go back at half the cost of 16 in a row.
// 16 elements and the 16 after them to pairs of one of each
RLHF_INLINE __m512i zip_halves(__m512i elements) {
    alignas(64) static constexpr std::uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), elements);
}

// 1 / x of a normal number: a Newton step from 14 bits
RLHF_INLINE __m512 reciprocal(__m512 x) {
    const __m512 guess = _mm512_rcp14_ps(x);
    return _mm512_fmadd_ps(guess, _mm512_fnmadd_ps(x, guess, Avx512::set1(1.0f)), guess);
}

struct Avx512Pairs {
    struct F {
        __m512 even, odd;

        RLHF_INLINE friend F operator+(F a, F b) { return {a.even + b.even, a.odd + b.odd}; }
        RLHF_INLINE friend F operator-(F a, F b) { return {a.even - b.even, a.odd - b.odd}; }
        RLHF_INLINE friend F operator*(F a, F b) { return {a.even * b.even, a.odd * b.odd}; }
        // To within 2 roundings, where 1 / b is a normal number
        RLHF_INLINE friend F operator/(F a, F b) { return a * F{reciprocal(b.even), reciprocal(b.odd)}; }
    };
    static constexpr int kLanes = 2 * Avx512::kLanes;

    RLHF_INLINE static F set1(float x) { return {Avx512::set1(x), Avx512::set1(x)}; }
    RLHF_INLINE static F fma(F a, F b, F c) {
        return {Avx512::fma(a.even, b.even, c.even), Avx512::fma(a.odd, b.odd, c.odd)};
    }
    RLHF_INLINE static F max(F a, F b) { return {Avx512::max(a.even, b.even), Avx512::max(a.odd, b.odd)}; }
    RLHF_INLINE static F min(F a, F b) { return {Avx512::min(a.even, b.even), Avx512::min(a.odd, b.odd)}; }
    RLHF_INLINE static F round(F x) { return {Avx512::round(x.even), Avx512::round(x.odd)}; }
    RLHF_INLINE static F times_power_of_2(F x, F n) {
        return {Avx512::times_power_of_2(x.even, n.even), Avx512::times_power_of_2(x.odd, n.odd)};
    }
    // 32 bf16 elements, the first in the low half of the first cell
    RLHF_INLINE static F from_cells(__m512i cells) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(cells, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(cells, _mm512_set1_epi32(-65536)))};
    }
    RLHF_INLINE static __m512i to_cells(F x) {
        return zip_halves((__m512i)_mm512_cvtne2ps_pbh(x.odd, x.even));
    }
};

template <>
RLHF_INLINE Avx512Pairs::F load_some<Avx512Pairs>(const std::uint16_t* p, std::int64_t count) {
    return Avx512Pairs::from_cells(_mm512_maskz_loadu_epi16(lanes_below(count), p));
}

template <>
RLHF_INLINE void store_some<Avx512Pairs>(std::uint16_t* p, Avx512Pairs::F x, std::int64_t count) {
    _mm512_mask_storeu_epi16(p, lanes_below(count), Avx512Pairs::to_cells(x));
}

template <>
RLHF_INLINE float sum_of_lanes<Avx512Pairs>(Avx512Pairs::F x) {
    return _mm512_reduce_add_ps(x.even + x.odd);
}

}  // namespace
}  // namespace rlhf
