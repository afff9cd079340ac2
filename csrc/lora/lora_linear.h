// A linear layer whose rows belong to different LoRA adapters, in bf16 (Hu et al. 2021). An adapter's second product is
// one more step of the layer's own, so that y and dx are written once and rounded once.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"

namespace rlhf::lora {

struct LoraKernels;

// An adapter, float: a (rank, inputs), b (outputs, rank); and both in bf16, a times the scale.
struct LoraAdapter {
    const float *a, *b;
    std::uint16_t *scaled_a, *rounded_b;
    std::int64_t rank;
    float scale;
};

// Rows [first, last) use adapters[slot], or none where slot is -1.
struct LoraGroup {
    std::int64_t slot, first, last;
};

struct LoraLayer {
    const std::uint16_t* weight;  // (outputs, inputs)
    std::int64_t outputs, inputs, output_stride, input_stride;  // one of the strides is 1
    std::vector<LoraAdapter> adapters;
    std::vector<LoraGroup> groups;  // all rows, in order
    std::int64_t inner_stride;      // of a row of x (scale A)^T; at least every rank
    const LoraKernels* kernels;     // none of them null
    int threads;
};

// y (rows, outputs) = x W^T + bias + inner B^T, with inner (rows, inner_stride) = x (scale A)^T, zero beyond a group's
// rank. Writes the adapters' bf16 copies, inner and y.
void lora_linear(const LoraLayer& layer, const std::uint16_t* x, const float* bias, std::uint16_t* inner,
                 std::uint16_t* y);

// Gradients of an adapter, float: da (rank, inputs), db (outputs, rank); both nullptr where none is asked for
struct LoraGradients {
    float *da, *db;
};

// dx (rows, inputs) and what `gradients` points to are written. Reads the adapters' bf16 copies.
void lora_linear_backward(const LoraLayer& layer, const std::uint16_t* x, const std::uint16_t* inner,
                          const std::uint16_t* dy, std::uint16_t* dx, const std::vector<LoraGradients>& gradients);

// What it is made of: products of bf16 matrices, which are compiled for tile registers only (product.h, outer.h).
//
// A right operand is packed: panels of kPanel columns, a panel [pair of the depth][column], with zeros behind the last
// column and depth up to whole tiles and steps; the last panel has one tile of columns where one is enough.
constexpr std::int64_t kPanel = 32, kStep = 32, kTile = 16;

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

// All null where the processor has no tile registers
struct LoraKernels {
    void (*pack)(const RightMatrix& matrix, std::uint16_t* packed);
    void (*multiply)(const LoraProductTask& task);
    // Rows [first, last) of left (.., ranks) -> [block of 32 rows][tile of 16 ranks][16][32], zeros where there is none
    void (*pack_transposed)(const std::uint16_t* left, std::int64_t stride, std::int64_t ranks, const RowRange& range,
                            std::uint16_t* packed);
    void (*outer)(const OuterTask& task);
};

}  // namespace rlhf::lora
