// AVX2 with FMA: 24 rows x 4 vocabulary entries in 12 of the 16 registers. bf16 is widened to float.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define RLHF_TARGET __attribute__((target("avx2,fma")))
#include "target.h"

namespace rlhf {
namespace {

struct Avx2 {
    using F = __m256;
    typedef std::int32_t I __attribute__((vector_size(32)));
    typedef std::uint32_t U __attribute__((vector_size(32)));
    static constexpr int kLanes = 8, kGroups = 3, kRows = 4;

    RLHF_INLINE static F load(const float* p) { return _mm256_loadu_ps(p); }
    RLHF_INLINE static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    RLHF_INLINE static F set1(float x) { return _mm256_set1_ps(x); }
    RLHF_INLINE static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    RLHF_INLINE static F max(F a, F b) { return _mm256_max_ps(a, b); }
    RLHF_INLINE static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    RLHF_INLINE static F times_power_of_2(F x, F n) {  // n <= 127; 0 where the result would be subnormal
        const __m256i exponent = _mm256_max_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(-127));
        return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    }
    RLHF_INLINE static F widen(const std::uint16_t* p) {  // bf16
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    RLHF_INLINE static F copy_sign(F x, F sign) { return _mm256_or_ps(x, _mm256_and_ps(sign, set1(-0.0f))); }
    RLHF_INLINE static F to_float(I x) { return _mm256_cvtepi32_ps((__m256i)x); }
    RLHF_INLINE static I bits(F x) { return (I)x; }
    RLHF_INLINE static F from_bits(I x) { return (F)x; }
};

}  // namespace
}  // namespace rlhf
