// Products of bf16 matrices in tile registers: what `lora_linear` is made of where the processor has them.
//
// A right operand is packed: panels of kPanel columns, a panel [pair of the depth][column], with zeros behind the last
// column and depth up to whole tiles and steps; the last panel has one tile of columns where one is enough.
#pragma once

#include <cstdint>

#include "isa/level.h"

namespace rlhf {

constexpr std::int64_t kPanel = 32, kStep = 32, kTile = 16;

constexpr std::int64_t round_up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit * unit; }

// Element (d, c) lies at data[d * depth_stride + c * column_stride]; one of the strides is 1.
struct RightMatrix {
    const std::uint16_t* data;
    std::int64_t depth, columns, depth_stride, column_stride;

    RightMatrix from_column(std::int64_t first, std::int64_t count) const {
        return {data + first * column_stride, depth, count, depth_stride, column_stride};
    }
    std::int64_t packed_elements() const { return round_up(depth, kStep) * round_up(columns, kTile); }
};

// Rows of the left operand, `stride` elements apart.
struct LeftMatrix {
    const std::uint16_t* data;
    std::int64_t stride, depth;
};

// out = left right + (left into) out_of + bias: a product, and beside it a second one through `ranks` columns, an
// adapter's, whose inner value is rounded to bf16.
struct LoraProductTask {
    std::int64_t rows, columns;
    LeftMatrix left;
    const std::uint16_t* right;  // packed (depth, columns)
    std::int64_t ranks;          // 0: no second product
    const std::uint16_t* into;   // packed (depth, ranks)
    const std::uint16_t* out_of;  // packed (ranks, columns)
    std::uint16_t* inner;  // (rows, ranks), written, or nullptr
    std::int64_t inner_stride;
    const float* bias;  // (columns,) or nullptr
    std::uint16_t* out;
    std::int64_t out_stride;
};

struct RowRange {
    std::int64_t first, last;
};

// out[r * rank_stride + c * column_stride] = scale * sum over rows m of the ranges: left[m][r] right[m][c]
struct OuterTask {
    const std::uint16_t* left;  // as packed by `pack_transposed`, the ranges one after the other
    std::int64_t ranks;
    const std::uint16_t* right;
    std::int64_t right_stride, first_column, last_column;
    const RowRange* ranges;
    std::int64_t range_count;
    float scale;
    float* out;
    std::int64_t rank_stride, column_stride;
};

#if RLHF_AMX
namespace amx {
void pack(const RightMatrix& matrix, std::uint16_t* packed);
void multiply(const LoraProductTask& task);
// Rows [first, last) of left (.., ranks) -> [block of 32 rows][tile of 16 ranks][16][32], zeros where there is none
void pack_transposed(const std::uint16_t* left, std::int64_t stride, std::int64_t ranks, const RowRange& range,
                     std::uint16_t* packed);
void outer(const OuterTask& task);
}  // namespace amx
#endif

}  // namespace rlhf
