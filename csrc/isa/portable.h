// Any processor: vectors of four floats where the compiler has them, else one float. bf16 is widened to float.
//
// The level that avx2.h is measured against.
#pragma once

#include <cstdint>
#include <cstring>

#define RLHF_TARGET
#include "isa/vectors.h"

namespace rlhf {
namespace {

struct Portable {
#ifdef __GNUC__
    typedef float F __attribute__((vector_size(16)));
    typedef std::int32_t I __attribute__((vector_size(16)));
    typedef std::uint32_t U __attribute__((vector_size(16)));
    static constexpr int kLanes = 4, kGroups = 3, kRows = 2;
#else
    using F = float;
    using I = std::int32_t;
    using U = std::uint32_t;
    static constexpr int kLanes = 1, kGroups = 3, kRows = 1;
#endif
    struct Sums {
        double lanes[kLanes];
    };

    RLHF_INLINE static F load(const float* p) {
        F x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    RLHF_INLINE static void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
    RLHF_INLINE static F set1(float x) { return F{} + x; }
    RLHF_INLINE static F from_bytes(const std::uint8_t* p) {
        float lanes[kLanes];
        for (float& lane : lanes) lane = *p++;
        return load(lanes);
    }
    RLHF_INLINE static void add(Sums& sums, F x) {
        float lanes[kLanes];
        store(lanes, x);
        for (int lane = 0; lane < kLanes; ++lane) sums.lanes[lane] += static_cast<double>(lanes[lane]);
    }
    RLHF_INLINE static F fma(F a, F b, F c) { return a * b + c; }
    RLHF_INLINE static F max(F a, F b) { return a > b ? a : b; }
    RLHF_INLINE static F min(F a, F b) { return a < b ? a : b; }
    RLHF_INLINE static F round(F x) { return (x + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23: |x| < 2^22
    RLHF_INLINE static F times_power_of_2(F x, F n) {  // n <= 127; 0 where the result would be subnormal
        float power[kLanes];
        store(power, n);
        for (float& p : power) {
            const std::int32_t exponent = static_cast<std::int32_t>(p > -127.0f ? p : -127.0f);
            const std::uint32_t bits = static_cast<std::uint32_t>(exponent + 127) << 23;
            std::memcpy(&p, &bits, sizeof p);
        }
        return x * load(power);
    }
    RLHF_INLINE static F widen(const std::uint16_t* p) {  // bf16
        float x[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) x[lane] = rlhf::to_float(p[lane]);
        return load(x);
    }
    RLHF_INLINE static void narrow(std::uint16_t* p, F x) {  // to bf16
        float y[kLanes];
        store(y, x);
        for (int lane = 0; lane < kLanes; ++lane) p[lane] = to_bfloat16(y[lane]);
    }
    RLHF_INLINE static F copy_sign(F x, F sign) { return sign < F{} ? -x : x; }
    RLHF_INLINE static F to_float(I x) {
        std::int32_t whole[kLanes];
        float y[kLanes];
        std::memcpy(whole, &x, sizeof x);
        for (int lane = 0; lane < kLanes; ++lane) y[lane] = static_cast<float>(whole[lane]);
        return load(y);
    }
    RLHF_INLINE static I bits(F x) {
        I y;
        std::memcpy(&y, &x, sizeof y);
        return y;
    }
    RLHF_INLINE static F from_bits(I x) {
        F y;
        std::memcpy(&y, &x, sizeof y);
        return y;
    }
};

}  // namespace
}  // namespace rlhf
