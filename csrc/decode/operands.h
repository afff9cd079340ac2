// What a decode product multiplies. `Stored` is the element of weights and cache, `Activation` that of the rows of x;
// a cell is what one lane of a packed weight register holds, and a product step takes one cell.
#pragma once

#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/target.h"

namespace rlhf {
namespace {

// float activations times float weights, or bf16 ones that are widened as they are read
template <class Instructions, class Element>
struct WideDecode {
    using Isa = Instructions;
    using F = typename Isa::F;
    using Operand = F;
    using Stored = Element;
    using Cell = Element;
    using Activation = float;
    using QueryCell = float;
    static constexpr int kDepth = 1;

    RLHF_INLINE static Operand load(const float* cells) { return Isa::load(cells); }
    RLHF_INLINE static Operand load(const std::uint16_t* cells) { return Isa::widen(cells); }
    RLHF_INLINE static Operand load_query(const QueryCell* cells) { return Isa::load(cells); }
    RLHF_INLINE static QueryCell query_cell(const float* query) { return *query; }
    RLHF_INLINE static Operand broadcast(const Activation* x) { return Isa::set1(*x); }
    RLHF_INLINE static Operand broadcast_stored(const Stored* x) { return Isa::set1(to_float(*x)); }
    RLHF_INLINE static F step(F sum, Operand a, Operand b) { return Isa::fma(a, b, sum); }
    RLHF_INLINE static Cell cell(const Stored* elements) { return *elements; }
};

inline void store_element(float* p, float x) { *p = x; }
inline void store_element(std::uint16_t* p, float x) { *p = to_bfloat16(x); }

template <class Isa>
RLHF_INLINE typename Isa::F load_wide(const float* p) {
    return Isa::load(p);
}
template <class Isa>
RLHF_INLINE typename Isa::F load_wide(const std::uint16_t* p) {
    return Isa::widen(p);
}

}  // namespace
}  // namespace rlhf
