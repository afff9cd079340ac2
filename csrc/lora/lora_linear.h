// A linear layer whose rows belong to different LoRA adapters, in bf16 (Hu et al. 2021). An adapter's second product is
// one more step of the layer's own, so that y and dx are written once and rounded once.
#pragma once

#include <cstdint>
#include <vector>

#include "lora/kernels.h"

namespace rlhf {

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

}  // namespace rlhf
