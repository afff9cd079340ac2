// One token for each of several sequences through all layers of a Llama-like model: RMSNorm, rotary position embedding
// (Su et al. 2021), grouped-query attention over a cache, SwiGLU; with Qwen2's biases and Qwen3's norms of q and k.
// One parallel region for the whole step; weights are packed copies, so the source may change or go after construction.
#pragma once

#include <cstdint>
#include <vector>

#include "common.h"
#include "decode/kernels.h"
#include "decode/packed_linear.h"

namespace rlhf::decode {

struct DecoderShape {
    std::int64_t hidden_size, heads, kv_heads, head_dim, intermediate_size;
    float eps, attention_scale;
};

struct LayerSource {
    std::vector<LinearSource> qkv, o, gate_up, down;  // of 3, 1, 2 and 1 linear layers
    const float *attention_norm, *mlp_norm;           // (hidden_size,)
    const float *q_norm, *k_norm;                     // (head_dim,) or nullptr
    std::int64_t window;                              // 0: none
};

// The step's rows. Keys and values of a layer are (capacity, kv_heads, length, head_dim) of the model's element; row b
// reads positions 0..lengths[b]-1 and writes position lengths[b].
struct DecodeInputs {
    std::int64_t rows;
    const std::int64_t *tokens, *lengths;  // (rows,)
    const void* embedding;                 // (vocabulary, hidden_size) of the model's element
    const float *cos, *sin;                // (length, head_dim)
    void* const* keys;                     // (layers,)
    void* const* values;
    std::int64_t length;
    void* hidden;  // (rows, hidden_size) of the model's element: the last norm's output, written
    int threads;
};

class Decoder {
   public:
    Decoder(const DecoderShape& shape, const float* final_norm, const Kernels& kernels, Element element);
    void add_layer(const LayerSource& source);
    void step(const DecodeInputs& inputs);
    std::int64_t bytes() const;  // of packed weights

   private:
    struct Layer {
        PackedLinear qkv, o, gate_up, down;
        std::vector<float> attention_norm, mlp_norm, q_norm, k_norm;
        std::int64_t window;
    };
    struct Worker {
        int index, team;
        float* scratch;
    };
    struct Visible {  // of the cache, for one row and key-value head; the last position is the row's own
        char *keys, *values;
        std::int64_t positions;
    };
    struct Buffers;

    void run(const DecodeInputs& in, const Buffers& to, const Worker& worker) const;
    void enter(const DecodeInputs& in, const Buffers& to, const PackedLinear* before, const std::vector<float>& weight,
               const Worker& worker, bool last) const;
    void attend(const DecodeInputs& in, const Buffers& to, std::size_t layer, const Worker& worker) const;
    Visible visible(const DecodeInputs& in, std::size_t layer, std::int64_t task) const;
    void attend_head(const DecodeInputs& in, const Buffers& to, std::size_t layer, std::int64_t task,
                     const Visible& after, float* scratch) const;
    void gate(const DecodeInputs& in, const Buffers& to, const Layer& layer, const Worker& worker) const;
    void rotate(const float* source, const std::vector<float>& norm, const float* cos, const float* sin,
                float* out) const;

    DecoderShape shape_;
    const DecodeKernels& kernels_;
    Element element_;
    std::vector<float> final_norm_;
    Arena arena_;
    std::vector<Layer> layers_;
};

}  // namespace rlhf::decode
