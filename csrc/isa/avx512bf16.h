// AVX-512 with bf16 dot products: 48 rows x 8 vocabulary entries in 24 of the 32 registers.
#pragma once

#if !defined(__clang__) && __GNUC__ < 13
#pragma GCC diagnostic ignored "-Wuninitialized"  // wrongly raised inside the intrinsics header (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define RLHF_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#include "isa/target.h"

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

}  // namespace
}  // namespace rlhf
