// bfloat16 is the upper half of a float.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

namespace rlhf {
namespace {

RLHF_INLINE float to_float(float x) { return x; }

RLHF_INLINE float to_float(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

}  // namespace
}  // namespace rlhf
