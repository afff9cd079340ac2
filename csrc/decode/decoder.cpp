#include "decode/decoder.h"

#include <algorithm>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "common.h"
#include "isa/kernels.h"

namespace rlhf::decode {
namespace {

std::vector<float> copied(const float* x, std::int64_t count) {
    return x == nullptr ? std::vector<float>() : std::vector<float>(x, x + count);
}

void wait_for_all() {
#pragma omp barrier
}

std::int64_t element_bytes(Element element) { return element == Element::kBFloat16 ? 2 : 4; }

void load(const void* from, std::int64_t count, Element element, float* x) {
    if (element == Element::kFloat32) {
        std::memcpy(x, from, static_cast<std::size_t>(count) * sizeof *x);
    } else {
        for (std::int64_t i = 0; i < count; ++i) x[i] = to_float(static_cast<const std::uint16_t*>(from)[i]);
    }
}

void store(const float* x, std::int64_t count, Element element, void* to) {
    if (element == Element::kFloat32) {
        std::memcpy(to, x, static_cast<std::size_t>(count) * sizeof *x);
    } else {
        for (std::int64_t i = 0; i < count; ++i) static_cast<std::uint16_t*>(to)[i] = to_bfloat16(x[i]);
    }
}

std::int64_t padded(std::int64_t count) { return (count + 31) / 32 * 32; }

}  // namespace

// What passes between the phases of a step, for all rows.
struct Decoder::Buffers {
    std::int64_t x_stride, y_stride, a_stride;
    Buffer<float> x, y;  // the residual stream, and the outputs of the last product
    Buffer<char> a;      // inputs of the next product, activation elements

    Buffers(const Decoder& decoder, std::int64_t rows) : x_stride(padded(decoder.shape_.hidden_size)), y_stride(0) {
        const DecoderShape& s = decoder.shape_;
        for (const Layer& layer : decoder.layers_) {
            for (const PackedLinear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
                y_stride = std::max(y_stride, linear->outputs());
            }
        }
        a_stride = padded(std::max({s.hidden_size, s.intermediate_size, s.heads * s.head_dim}) + 1);
        x = Buffer<float>(rows * x_stride);
        y = Buffer<float>(rows * y_stride);
        a = Buffer<char>(rows * a_stride * decoder.kernels_.activation_bytes);
        bytes_ = decoder.kernels_.activation_bytes;
    }
    char* activations(std::int64_t row, std::int64_t first = 0) const {
        return a.data() + (row * a_stride + first) * bytes_;
    }

   private:
    std::int64_t bytes_;
};

Decoder::Decoder(const DecoderShape& shape, const float* final_norm, const Kernels& kernels, Element element)
    : shape_(shape), kernels_(kernels.decode[element]), element_(element),
      final_norm_(copied(final_norm, shape.hidden_size)) {}

void Decoder::add_layer(const LayerSource& source) {
    const auto pack = [&](const std::vector<LinearSource>& linear) {
        return PackedLinear(linear, element_, kernels_, arena_);
    };
    layers_.push_back({pack(source.qkv), pack(source.o), pack(source.gate_up), pack(source.down),
                       copied(source.attention_norm, shape_.hidden_size), copied(source.mlp_norm, shape_.hidden_size),
                       copied(source.q_norm, shape_.head_dim), copied(source.k_norm, shape_.head_dim), source.window});
}

std::int64_t Decoder::bytes() const {
    std::int64_t total = 0;
    for (const Layer& layer : layers_) {
        total += layer.qkv.bytes() + layer.o.bytes() + layer.gate_up.bytes() + layer.down.bytes();
    }
    return total;
}

void Decoder::step(const DecodeInputs& in) {
    const std::int64_t longest = *std::max_element(in.lengths, in.lengths + in.rows) + 1;
    const std::int64_t group_heads = padded((shape_.heads / shape_.kv_heads + 2) * shape_.head_dim);
    const std::int64_t scratch =
        std::max(padded(std::max(shape_.intermediate_size, shape_.hidden_size)),
                 group_heads + padded(kernels_.attention_scratch(shape_.head_dim, longest)));
    const Buffers buffers(*this, in.rows);
    const int threads = std::max(in.threads, 1);
    const Buffer<float> memory(threads * scratch);
#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        const int index = omp_get_thread_num(), team = omp_get_num_threads();
#else
        const int index = 0, team = 1;
#endif
        run(in, buffers, {index, team, memory.data() + index * scratch});
    }
}

// Every phase reads what other threads wrote in the one before.
void Decoder::run(const DecodeInputs& in, const Buffers& to, const Worker& w) const {
    const auto multiply = [&](const PackedLinear& linear, const PackedLinear* after) {
        wait_for_all();
        linear.multiply(to.a.data(), in.rows, to.a_stride, to.y.data(), to.y_stride, after, w.index, w.team);
        wait_for_all();
    };
    const PackedLinear* before = nullptr;
    for (std::size_t l = 0; l < layers_.size(); ++l) {
        const Layer& layer = layers_[l];
        enter(in, to, before, layer.attention_norm, w, false);
        multiply(layer.qkv, &layer.o);
        attend(in, to, l, w);
        multiply(layer.o, &layer.gate_up);
        enter(in, to, &layer.o, layer.mlp_norm, w, false);
        multiply(layer.gate_up, &layer.down);
        gate(in, to, layer, w);
        multiply(layer.down, l + 1 < layers_.size() ? &layers_[l + 1].qkv : nullptr);
        before = &layer.down;
    }
    enter(in, to, before, final_norm_, w, true);
}

// x = the embedding, or x += the outputs of the layer before; then x's norm becomes the input of the next product, or
// the result of the step.
void Decoder::enter(const DecodeInputs& in, const Buffers& to, const PackedLinear* before,
                    const std::vector<float>& weight, const Worker& w, bool last) const {
    const std::int64_t size = shape_.hidden_size, bytes = element_bytes(element_);
    for (std::int64_t row = w.index * in.rows / w.team; row < (w.index + 1) * in.rows / w.team; ++row) {
        float* x = to.x.data() + row * to.x_stride;
        if (before == nullptr) {
            load(static_cast<const char*>(in.embedding) + in.tokens[row] * size * bytes, size, element_, x);
        } else {
            float* y = to.y.data() + row * to.y_stride;
            before->add_adapter(y, 0);
            for (std::int64_t i = 0; i < size; ++i) x[i] += y[i];
        }
        kernels_.norm(x, weight.data(), size, shape_.eps, w.scratch);
        if (last) {
            store(w.scratch, size, element_, static_cast<char*>(in.hidden) + row * size * bytes);
        } else {
            kernels_.round(w.scratch, size, to.activations(row));
        }
    }
}

void Decoder::gate(const DecodeInputs& in, const Buffers& to, const Layer& layer, const Worker& w) const {
    const std::int64_t size = shape_.intermediate_size;
    for (std::int64_t row = w.index * in.rows / w.team; row < (w.index + 1) * in.rows / w.team; ++row) {
        float* y = to.y.data() + row * to.y_stride;
        for (std::size_t part : {0, 1}) layer.gate_up.add_adapter(y, part);
        kernels_.swiglu(y + layer.gate_up.first_output(0), y + layer.gate_up.first_output(1), size, w.scratch);
        kernels_.round(w.scratch, size, to.activations(row));
    }
}

// Tasks are (row, key-value head); each completes the outputs of its own heads by the adapters.
void Decoder::attend(const DecodeInputs& in, const Buffers& to, std::size_t layer, const Worker& w) const {
    const std::int64_t tasks = in.rows * shape_.kv_heads;
    for (std::int64_t task = w.index; task < tasks; task += w.team) {
        const std::int64_t next = task + w.team;
        attend_head(in, to, layer, task, next < tasks ? visible(in, layer, next) : Visible{}, w.scratch);
    }
}

Decoder::Visible Decoder::visible(const DecodeInputs& in, std::size_t layer, std::int64_t task) const {
    const std::int64_t last = in.lengths[task / shape_.kv_heads] + 1, window = layers_[layer].window;
    const std::int64_t first = window > 0 ? std::max<std::int64_t>(last - window, 0) : 0;
    const std::int64_t offset = (task * in.length + first) * shape_.head_dim * element_bytes(element_);
    return {static_cast<char*>(in.keys[layer]) + offset, static_cast<char*>(in.values[layer]) + offset, last - first};
}

void Decoder::attend_head(const DecodeInputs& in, const Buffers& to, std::size_t layer, std::int64_t task,
                          const Visible& after, float* scratch) const {
    const PackedLinear& qkv = layers_[layer].qkv;
    const std::int64_t dim = shape_.head_dim, groups = shape_.heads / shape_.kv_heads;
    const std::int64_t row = task / shape_.kv_heads, head = task % shape_.kv_heads, position = in.lengths[row];
    float* y = to.y.data() + row * to.y_stride;
    qkv.add_adapter(y, 0, head * groups * dim, (head + 1) * groups * dim);
    qkv.add_adapter(y, 1, head * dim, (head + 1) * dim);
    qkv.add_adapter(y, 2, head * dim, (head + 1) * dim);
    const float *cos = in.cos + position * dim, *sin = in.sin + position * dim;
    float *queries = scratch, *key = queries + groups * dim, *rest = scratch + padded((groups + 2) * dim);
    for (std::int64_t g = 0; g < groups; ++g) {
        const float* query = y + qkv.first_output(0) + (head * groups + g) * dim;
        rotate(query, layers_[layer].q_norm, cos, sin, queries + g * dim);
    }
    rotate(y + qkv.first_output(1) + head * dim, layers_[layer].k_norm, cos, sin, key);
    const Visible cache = visible(in, layer, task);
    const std::int64_t own = (cache.positions - 1) * dim * element_bytes(element_);
    store(key, dim, element_, cache.keys + own);
    store(y + qkv.first_output(2) + head * dim, dim, element_, cache.values + own);
    kernels_.attend({queries, groups, dim, cache.positions, cache.keys, cache.values, shape_.attention_scale, rest,
                     to.activations(row, head * groups * dim), after.keys, after.positions});
}

// The two halves of a head turn by the angles of its position.
void Decoder::rotate(const float* source, const std::vector<float>& norm, const float* cos, const float* sin,
                     float* out) const {
    const std::int64_t dim = shape_.head_dim, half = dim / 2;
    float* normed = out + dim;  // in the scratch behind
    if (!norm.empty()) {
        kernels_.norm(source, norm.data(), dim, shape_.eps, normed);
        source = normed;
    }
    for (std::int64_t d = 0; d < half; ++d) {
        out[d] = source[d] * cos[d] - source[d + half] * sin[d];
        out[d + half] = source[d + half] * cos[d + half] + source[d] * sin[d + half];
    }
}

}  // namespace rlhf::decode
