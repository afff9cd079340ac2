// Drivers of the layer kernels: they share rows, or sequences and heads, out among threads.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/kernels.h"

namespace rlhf {

struct LayerCompute {
    Level level;
    Element element;
    int threads;
};

void rms_norm(const RmsNorm& norm, std::int64_t rows, const LayerCompute& compute);
void rms_norm_backward(const RmsNormBackward& norm, std::int64_t rows, const LayerCompute& compute);
void swiglu(const Swiglu& swiglu, std::int64_t entries, const LayerCompute& compute);
void swiglu_backward(const SwigluBackward& swiglu, std::int64_t entries, const LayerCompute& compute);
void rotary(const Rotary& rotary, std::int64_t tokens, const LayerCompute& compute);

// `offsets` (sequences + 1,) from 0 to the number of tokens; a sequence may be empty.
void attention(const AttentionForward& forward, const std::vector<std::int64_t>& offsets, const LayerCompute& compute);
void attention_backward(const AttentionBackward& backward, const std::vector<std::int64_t>& offsets,
                        const LayerCompute& compute);

}  // namespace rlhf
