// The inner loop: several rows of one operand, broadcast, times several vectors of the other, summed in registers; and
// how the operands that come next are fetched meanwhile.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/vectors.h"

namespace rlhf {
namespace {

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

// Most bytes of weights that meet all rows before the next ones are read: what a second-level cache holds
constexpr std::int64_t kBlockBytes = 1 << 20;

// Touches memory that is needed soon, a part at each step, so that its latency hides behind arithmetic.
struct Prefetch {
    const char* next = nullptr;
    const char* end = nullptr;
    std::int64_t bytes_per_step = 0;

    RLHF_TARGET void step() {
        const char* stop = std::min(end, next + bytes_per_step);
        for (; next < stop; next += 64) RLHF_PREFETCH(next);
    }
};

}  // namespace
}  // namespace rlhf
