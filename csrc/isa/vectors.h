// What every kernel does with vectors of float, written once for all instruction sets: rows of float or bf16 in and
// out, exp, tanh and log. `Isa` is one of Portable, Avx2 and Avx512 (portable.h, avx2.h, avx512bf16.h).
//
// RLHF_TARGET is defined by each of those before it includes this: the instruction set to compile for. Everything that
// kernels define is in an unnamed namespace, so that no function leaks from one instruction set into another.
#pragma once

#ifndef RLHF_TARGET
#error "define RLHF_TARGET first"
#endif

#ifdef __GNUC__
#define RLHF_INLINE RLHF_TARGET inline __attribute__((always_inline))
#define RLHF_UNROLL _Pragma("GCC unroll 16")
#define RLHF_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#define RLHF_INLINE inline
#define RLHF_UNROLL
#define RLHF_PREFETCH(address)
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common.h"

namespace rlhf {
namespace {

// Vectors from and to rows, whole or their last few entries.

template <class Isa>
RLHF_INLINE typename Isa::F load_row(const float* p) {
    return Isa::load(p);
}

template <class Isa>
RLHF_INLINE typename Isa::F load_row(const std::uint16_t* p) {
    return Isa::widen(p);
}

template <class Isa>
RLHF_INLINE void store_row(float* p, typename Isa::F x) {
    Isa::store(p, x);
}

template <class Isa>
RLHF_INLINE void store_row(std::uint16_t* p, typename Isa::F x) {
    Isa::narrow(p, x);
}

// The first `count` lanes, or all if there are more; the others are 0.
template <class Isa, class T>
RLHF_INLINE typename Isa::F load_some(const T* p, std::int64_t count) {
    if (count >= Isa::kLanes) return load_row<Isa>(p);
    T lanes[Isa::kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) lanes[i] = p[i];
    return load_row<Isa>(lanes);
}

template <class Isa, class T>
RLHF_INLINE void store_some(T* p, typename Isa::F x, std::int64_t count) {
    if (count >= Isa::kLanes) return store_row<Isa>(p, x);
    T lanes[Isa::kLanes];
    store_row<Isa>(lanes, x);
    for (std::int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

template <class Isa>
RLHF_INLINE float sum_of_lanes(typename Isa::F x) {
    float lanes[Isa::kLanes], sum = 0;
    Isa::store(lanes, x);
    for (const float lane : lanes) sum += lane;
    return sum;
}

// exp and tanh for the arguments that a softmax has, and exp for any argument.

constexpr float kFloor = -1e4f;  // e^x is 0 in float far above; stands in for -inf, which times 0 would be NaN
constexpr float kLowest = -std::numeric_limits<float>::max();  // where a maximum starts: -inf less -inf would be NaN

// (2^f - 1) / f for |f| <= 1/2, relative error 2e-8 (Cephes exp2f)
template <class Isa>
RLHF_INLINE typename Isa::F exp2_slope(typename Isa::F f) {
    auto p = Isa::fma(Isa::set1(1.535336188319500e-4f), f, Isa::set1(1.339887440266574e-3f));
    p = Isa::fma(p, f, Isa::set1(9.618437357674640e-3f));
    p = Isa::fma(p, f, Isa::set1(5.550332471162809e-2f));
    p = Isa::fma(p, f, Isa::set1(2.402264791363012e-1f));
    return Isa::fma(p, f, Isa::set1(6.931472028550421e-1f));
}

// x log2(e) = n + f, n whole, |f| <= 1/2
template <class Isa>
RLHF_INLINE void split_power(typename Isa::F x, typename Isa::F& n, typename Isa::F& f) {
    const auto log2e = Isa::set1(1.44269502f), rest = Isa::set1(1.92596303e-8f);
    n = Isa::round(x * log2e);
    f = Isa::fma(x, rest, Isa::fma(x, log2e, Isa::set1(0.0f) - n));
}

// e^x for kFloor <= x <= 88, relative error 1e-7; exactly 1 at 0
template <class Isa>
RLHF_INLINE typename Isa::F exp(typename Isa::F x) {
    typename Isa::F n, f;
    split_power<Isa>(x, n, f);
    return Isa::times_power_of_2(Isa::fma(exp2_slope<Isa>(f), f, Isa::set1(1.0f)), n);
}

// e^x for any x, subnormal results, infinities and NaN included; relative error 2e-7, exactly 1 at 0. The remainder
// x - n log 2 is taken in two steps, the first exact without fma, and 2^n in two factors, each a normal number.
template <class Isa>
RLHF_INLINE typename Isa::F exp_of_any(typename Isa::F x) {
    x = Isa::min(Isa::set1(90.0f), Isa::max(Isa::set1(-105.0f), x));  // where e^x is infinite and 0 in float
    const auto n = Isa::round(x * Isa::set1(1.44269502f)), half = Isa::round(n * Isa::set1(0.5f));
    const auto rest = (x - n * Isa::set1(0.693359375f)) + n * Isa::set1(2.12194440e-4f);
    const auto f = rest * Isa::set1(1.44269502f);
    const auto power = Isa::fma(exp2_slope<Isa>(f), f, Isa::set1(1.0f));
    return Isa::times_power_of_2(Isa::times_power_of_2(power, half), n - half);
}

// The e^-x of 1 / (1 + e^-x), bounded so that the quotient is a normal number
template <class Isa>
RLHF_INLINE typename Isa::F logistic_power(typename Isa::F x) {
    const auto limit = Isa::set1(80.0f), zero = Isa::set1(0.0f);
    return exp<Isa>(zero - Isa::max(zero - limit, Isa::min(limit, x)));
}

// 1 from -80 on and 0 below -81, where the bound would show: 1 / (1 + e^80) is as good as 0, but not times any x
template <class Isa>
RLHF_INLINE typename Isa::F within_bound(typename Isa::F x) {
    return Isa::min(Isa::set1(1.0f), Isa::max(Isa::set1(0.0f), x + Isa::set1(81.0f)));
}

// tanh x = -e / (2 + e), e = e^(-2|x|) - 1 computed without cancellation, so that small x keep their relative accuracy
template <class Isa>
RLHF_INLINE typename Isa::F tanh(typename Isa::F x) {
    typename Isa::F n, f;
    const auto negative = Isa::set1(0.0f) - Isa::max(x, Isa::set1(0.0f) - x);
    split_power<Isa>(Isa::max(Isa::set1(-40.0f), negative + negative), n, f);
    const auto power = Isa::times_power_of_2(Isa::set1(1.0f), n);
    const auto e = Isa::fma(power, exp2_slope<Isa>(f) * f, power - Isa::set1(1.0f));
    return Isa::copy_sign(Isa::set1(0.0f) - e / (e + Isa::set1(2.0f)), x);
}

// log x for positive normal x, relative error 1e-7 but near 1, where it is 1e-7 absolute (Cephes logf)
template <class Isa>
RLHF_INLINE typename Isa::F log(typename Isa::F x) {
    using I = typename Isa::I;
    const I sqrt_half = I{} + 0x3f3504f3;  // x = 2^n m, sqrt(1/2) <= m < sqrt(2)
    const I n = (Isa::bits(x) - sqrt_half) >> 23;
    const auto t = Isa::from_bits(Isa::bits(x) - n * (1 << 23)) - Isa::set1(1.0f), square = t * t;
    auto p = Isa::fma(Isa::set1(7.0376836292e-2f), t, Isa::set1(-1.1514610310e-1f));
    p = Isa::fma(p, t, Isa::set1(1.1676998740e-1f));
    p = Isa::fma(p, t, Isa::set1(-1.2420140846e-1f));
    p = Isa::fma(p, t, Isa::set1(1.4249322787e-1f));
    p = Isa::fma(p, t, Isa::set1(-1.6668057665e-1f));
    p = Isa::fma(p, t, Isa::set1(2.0000714765e-1f));
    p = Isa::fma(p, t, Isa::set1(-2.4999993993e-1f));
    p = Isa::fma(p, t, Isa::set1(3.3333331174e-1f));
    const auto whole = Isa::to_float(n);
    auto y = Isa::fma(whole, Isa::set1(-2.12194440e-4f), p * t * square);
    y = Isa::fma(square, Isa::set1(-0.5f), y);
    return Isa::fma(whole, Isa::set1(0.693359375f), t + y);
}

// The larger of x and kFloor; NaN stays NaN
template <class Isa>
RLHF_INLINE typename Isa::F floored(typename Isa::F x) {
    return Isa::max(Isa::set1(kFloor), x);
}

}  // namespace
}  // namespace rlhf
