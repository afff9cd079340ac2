// Vectors of float from and to rows of float or bf16, whole or their last few entries.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/target.h"

namespace rlhf {
namespace {

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

}  // namespace
}  // namespace rlhf
