// The parts of a decode step that are compiled for each instruction set. The driver (decoder.cpp) brings memory and
// threads. Activations between layers are float; what enters a product is rounded to `activation_bytes` elements, and
// weights are packed so that one register holds one element, or one pair of elements, of several outputs.
#pragma once

#include <cstdint>

#include "common.h"

namespace rlhf::decode {

// One output's weights, contiguous: float, or bf16 where the model is.
struct WeightRow {
    const void* data;
    Element element;
};

// y[m][n] = sum over k of x[m][k] w[n][k] + bias[n], for the outputs of blocks [first, last)
struct ProductTask {
    const void* x;  // (rows, x_stride) activation elements
    std::int64_t rows, x_stride;
    const void* blocks;  // as written by `pack`
    std::int64_t inputs;
    const float* bias;  // (outputs rounded up to a block,)
    std::int64_t first, last;
    float* y;
    std::int64_t y_stride;
    const void* after;  // nullptr, or what this thread reads next: it is fetched meanwhile
    std::int64_t after_bytes;
};

// Query heads that share a key-value head look at a run of positions in the cache.
struct AttentionTask {
    const float* query;  // (heads, head_dim), rotated
    std::int64_t heads, head_dim, positions;
    const void *keys, *values;  // (positions, head_dim) cache elements
    float scale;
    float* scratch;     // attention_scratch(head_dim, positions) floats
    void* out;          // (heads, head_dim) activation elements
    const void* after;  // the keys that this thread reads next: they are fetched meanwhile
    std::int64_t after_positions;  // 0: none
};

struct DecodeKernels {
    std::int64_t block_outputs;     // outputs of a packed block
    std::int64_t activation_bytes;  // of an element
    std::int64_t (*block_bytes)(std::int64_t inputs);
    void (*pack)(const WeightRow* rows, std::int64_t count, std::int64_t inputs, void* block);
    void (*product)(const ProductTask& task);
    // y[n] += scale * sum over r of x[r] b[r][n]: the second half of an adapter; the rows of b are
    // `stride` elements apart
    void (*add_outer)(const float* x, std::int64_t rank, float scale, const void* b, std::int64_t stride,
                      std::int64_t outputs, float* y);
    // out = x / sqrt(mean x^2 + eps) * weight (Zhang and Sennrich 2019)
    void (*norm)(const float* x, const float* weight, std::int64_t count, float eps, float* out);
    // silu(gate) * up (Shazeer 2020)
    void (*swiglu)(const float* gate, const float* up, std::int64_t count, float* out);
    void (*round)(const float* x, std::int64_t count, void* activation);
    std::int64_t (*attention_scratch)(std::int64_t head_dim, std::int64_t positions);
    void (*attend)(const AttentionTask& task);
};

}  // namespace rlhf::decode
