// The parts of a decoder layer between its matrix products: RMS norm, SwiGLU, rotary embedding and causal attention
// over sequences that lie side by side. Arithmetic is in float; bf16 is rounded once, at the end.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"

namespace rlhf::layers {

// y = x rstd weight, rstd = 1 / sqrt(mean x^2 + eps). x, y (rows, width) contiguous; rstd (rows,) is written.
struct RmsNorm {
    const void *x, *weight;
    void* y;
    float* rstd;
    std::int64_t width;
    float eps;
};

// dx = rstd (weight dy - x rstd mean(weight dy x rstd))
struct RmsNormBackward {
    const void *x, *weight, *dy;
    const float* rstd;
    void* dx;
    std::int64_t width;
};

// y = gate sigmoid(gate) up, all (entries,)
struct Swiglu {
    const void *gate, *up;
    void* y;
};

struct SwigluBackward {
    const void *gate, *up, *dy;
    void *d_gate, *d_up;
};

// Each pair (x[d], x[d + head_dim / 2]) of each head turns by the angle whose cosine and sine (tokens, head_dim / 2)
// are given; `direction` -1 turns back. x (tokens, heads, head_dim), head_dim contiguous.
struct Rotary {
    const void *x, *cos, *sin;
    void* y;  // contiguous
    std::int64_t token_stride, head_stride, angle_stride;
    std::int64_t heads, head_dim;
    float direction;
};

// x (tokens, heads, head_dim), head_dim contiguous
struct Heads {
    const void* data;
    std::int64_t token_stride, head_stride;
};

// Causal attention within sequences that lie side by side. Query head h reads key head h / (heads / kv_heads).
struct Attention {
    Heads q, k, v;
    std::int64_t heads, kv_heads, head_dim, tokens;
    float scale;
    std::int64_t window;  // a query sees this many keys, itself included; 0: all before it
};

struct AttentionForward {
    Attention attention;
    void* out;         // (tokens, heads, head_dim)
    float* log_sum;    // (heads, tokens): log sum e^(scale q k)
};

struct AttentionBackward {
    Attention attention;
    Heads out, d_out;
    const float* log_sum;
    void *dq, *dk, *dv;  // (tokens, heads or kv_heads, head_dim)
};

// One sequence [first, last) and one key and value head.
struct AttentionTask {
    std::int64_t first, last, kv_head;
    char* scratch;  // on a cache line
};

// What is compiled for each instruction set; the other headers here implement it.
struct LayerKernels {
    void (*rms_norm)(const RmsNorm& norm, std::int64_t first, std::int64_t last);  // rows
    void (*rms_norm_backward)(const RmsNormBackward& norm, std::int64_t first, std::int64_t last);
    void (*swiglu)(const Swiglu& swiglu, std::int64_t first, std::int64_t last);  // entries
    void (*swiglu_backward)(const SwigluBackward& swiglu, std::int64_t first, std::int64_t last);
    void (*rotary)(const Rotary& rotary, std::int64_t first, std::int64_t last);  // tokens
    std::int64_t (*attention_scratch)(std::int64_t length, std::int64_t head_dim);  // bytes
    void (*attention)(const AttentionForward& forward, const AttentionTask& task);
    std::int64_t (*attention_backward_scratch)(std::int64_t length, std::int64_t head_dim);
    void (*attention_backward)(const AttentionBackward& backward, const AttentionTask& task);
};

// The drivers share rows, or sequences and heads, out among threads.
void rms_norm(const RmsNorm& norm, std::int64_t rows, const Compute& compute);
void rms_norm_backward(const RmsNormBackward& norm, std::int64_t rows, const Compute& compute);
void swiglu(const Swiglu& swiglu, std::int64_t entries, const Compute& compute);
void swiglu_backward(const SwigluBackward& swiglu, std::int64_t entries, const Compute& compute);
void rotary(const Rotary& rotary, std::int64_t tokens, const Compute& compute);

// `offsets` (sequences + 1,) from 0 to the number of tokens; a sequence may be empty.
void attention(const AttentionForward& forward, const std::vector<std::int64_t>& offsets, const Compute& compute);
void attention_backward(const AttentionBackward& backward, const std::vector<std::int64_t>& offsets,
                        const Compute& compute);

}  // namespace rlhf::layers
