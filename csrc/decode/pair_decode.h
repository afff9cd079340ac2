// What a decode product of bf16 multiplies where the processor multiplies pairs of them.
#pragma once

#include "isa/avx512bf16.h"
#include "decode/operands.h"

namespace rlhf {
namespace {

// bf16 activations times bf16 weights, two at a time, summed in float
struct PairDecode : PairProduct {
    using Activation = std::uint16_t;
    using QueryCell = std::uint32_t;

    RLHF_INLINE static Operand load_query(const QueryCell* cells) { return load(cells); }
    RLHF_INLINE static QueryCell query_cell(const float* query) {
        return to_bfloat16(query[0]) | static_cast<std::uint32_t>(to_bfloat16(query[1])) << 16;
    }
    RLHF_INLINE static Operand broadcast_stored(const Stored* pair) { return broadcast(pair); }
    RLHF_INLINE static Cell cell(const Stored* pair) { return PairProduct::cell(pair, 2); }
};

}  // namespace
}  // namespace rlhf
