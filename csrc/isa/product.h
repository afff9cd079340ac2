// The inner loop: several rows of one operand, broadcast, times several vectors of the other, summed in registers.
#pragma once

#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/target.h"

namespace rlhf {
namespace {

// What a thread holds while it multiplies.
template <class P>
struct Registers {};

// Steps that a product takes at once: operands are filled up to a multiple of them.
template <class P>
constexpr int kStepsAtOnce = 1;

// One step of an inner product takes one `Cell` of each operand, here a float. PairProduct (bf16) takes two elements.
template <class Instructions>
struct FloatProduct {
    using Isa = Instructions;
    using F = typename Isa::F;
    using Operand = F;
    using Cell = float;
    using Stored = float;  // element of the rows that are broadcast
    static constexpr int kDepth = 1;

    RLHF_INLINE static Operand load(const Cell* cells) { return Isa::load(cells); }
    RLHF_INLINE static Operand broadcast(const void* cell) { return Isa::set1(*static_cast<const float*>(cell)); }
    RLHF_INLINE static Operand broadcast_tail(const void* cell) { return broadcast(cell); }
    RLHF_INLINE static F step(F sum, Operand a, Operand b) { return Isa::fma(a, b, sum); }
    template <class Source>
    RLHF_INLINE static Cell cell(const Source* elements, int) {
        return to_float(*elements);
    }
    RLHF_INLINE static Operand zip(const Stored* const (&rows)[1]) { return Isa::load(rows[0]); }
    RLHF_INLINE static void store(Cell* cells, Operand x) { Isa::store(cells, x); }
    RLHF_INLINE static Operand round(const F (&x)[1]) { return x[0]; }
    RLHF_INLINE static unsigned exceeds(F, F) { return 0; }  // floats are not rounded: nothing is too large for them
};

// sum[r][g] += over steps: rows[r * row_stride + step * step_stride] (bytes, broadcast) * lanes[step][g]
template <class P, int R, int G>
RLHF_INLINE void multiply(const char* rows, std::int64_t row_stride, std::int64_t step_stride,
                          const typename P::Cell* lanes, std::int64_t lane_stride, std::int64_t steps,
                          typename P::F (&sum)[R][G]) {
    for (std::int64_t step = 0; step < steps; ++step, rows += step_stride, lanes += lane_stride) {
        typename P::Operand a[G];
        RLHF_UNROLL
        for (int g = 0; g < G; ++g) a[g] = P::load(lanes + g * P::Isa::kLanes);
        RLHF_UNROLL
        for (int r = 0; r < R; ++r) {
            const typename P::Operand b = P::broadcast(rows + r * row_stride);
            RLHF_UNROLL
            for (int g = 0; g < G; ++g) sum[r][g] = P::step(sum[r][g], a[g], b);
        }
    }
}

}  // namespace
}  // namespace rlhf
