// Entries of dz that hold a large share of a row's gradient: rounding them to bf16 would show in the result, so they
// are added to it one by one, in float.
#pragma once

#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/target.h"

namespace rlhf {
namespace {

// d_hidden += value * weight row
template <class P>
RLHF_TARGET void axpy(float value, const typename P::Stored* weight, std::int64_t hidden_size, float* d_hidden) {
    for (std::int64_t h = 0; h < hidden_size; ++h) d_hidden[h] += value * to_float(weight[h]);
}

// Entries above the limit go to d_hidden and become 0; there are none in most tiles.
template <class P>
RLHF_TARGET void take_large(unsigned large, const typename P::Stored* weight, std::int64_t hidden_size,
                            float* d_hidden, std::int64_t d_hidden_stride, typename P::F& entries) {
    float values[P::Isa::kLanes];
    P::Isa::store(values, entries);
    for (int lane = 0; lane < P::Isa::kLanes; ++lane) {
        if ((large >> lane & 1) == 0) continue;
        axpy<P>(values[lane], weight, hidden_size, d_hidden + lane * d_hidden_stride);
        values[lane] = 0;
    }
    entries = P::Isa::load(values);
}

}  // namespace
}  // namespace rlhf
