// AVX-512 two vectors at a time, for what is done to each bf16 entry alone: 32 entries are the even ones and the odd
// ones, in which order they come out of their cells and go back at half the cost of 16 in a row.
#pragma once

#include <cstdint>

#include "isa/cells.h"
#include "isa/elements.h"
#include "isa/avx512bf16.h"

namespace rlhf {
namespace {

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
