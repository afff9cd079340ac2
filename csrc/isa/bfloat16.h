// bfloat16 is the upper half of a float. The namespace is unnamed, so that each source file has its own functions, for
// its own instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace rlhf {
namespace {

inline float to_float(float x) { return x; }

inline float to_float(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

inline std::uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace rlhf
