// RMS norm, SwiGLU and rotary embedding: each entry is read once and written once.
#pragma once

#include <cmath>
#include <cstdint>

#include "isa/vectors.h"
#include "layers/layers.h"

namespace rlhf::layers {
namespace {

template <class Isa, class T>
RLHF_TARGET void rms_norm(const RmsNorm& norm, std::int64_t first, std::int64_t last) {
    const auto* const weight = static_cast<const T*>(norm.weight);
    for (std::int64_t row = first; row < last; ++row) {
        const T* const x = static_cast<const T*>(norm.x) + row * norm.width;
        T* const y = static_cast<T*>(norm.y) + row * norm.width;
        auto squares = Isa::set1(0.0f);
        for (std::int64_t i = 0; i < norm.width; i += Isa::kLanes) {
            const auto entry = load_some<Isa>(x + i, norm.width - i);
            squares = Isa::fma(entry, entry, squares);
        }
        const float mean = sum_of_lanes<Isa>(squares) / static_cast<float>(norm.width);
        const float rstd = norm.rstd[row] = 1.0f / std::sqrt(mean + norm.eps);
        for (std::int64_t i = 0; i < norm.width; i += Isa::kLanes) {
            const std::int64_t left = norm.width - i;
            const auto scaled = load_some<Isa>(x + i, left) * Isa::set1(rstd);
            store_some<Isa>(y + i, scaled * load_some<Isa>(weight + i, left), left);
        }
    }
}

template <class Isa, class T>
RLHF_TARGET void rms_norm_backward(const RmsNormBackward& norm, std::int64_t first, std::int64_t last) {
    const auto* const weight = static_cast<const T*>(norm.weight);
    for (std::int64_t row = first; row < last; ++row) {
        const T* const x = static_cast<const T*>(norm.x) + row * norm.width;
        const T* const dy = static_cast<const T*>(norm.dy) + row * norm.width;
        T* const dx = static_cast<T*>(norm.dx) + row * norm.width;
        auto dot = Isa::set1(0.0f);
        for (std::int64_t i = 0; i < norm.width; i += Isa::kLanes) {
            const std::int64_t left = norm.width - i;
            const auto gradient = load_some<Isa>(weight + i, left) * load_some<Isa>(dy + i, left);
            dot = Isa::fma(gradient, load_some<Isa>(x + i, left), dot);
        }
        const float rstd = norm.rstd[row], mean = sum_of_lanes<Isa>(dot) / static_cast<float>(norm.width);
        const auto along = Isa::set1(-mean * rstd * rstd * rstd);
        for (std::int64_t i = 0; i < norm.width; i += Isa::kLanes) {
            const std::int64_t left = norm.width - i;
            const auto gradient = load_some<Isa>(weight + i, left) * load_some<Isa>(dy + i, left);
            const auto across = gradient * Isa::set1(rstd);
            store_some<Isa>(dx + i, Isa::fma(along, load_some<Isa>(x + i, left), across), left);
        }
    }
}

template <class Isa>
RLHF_INLINE typename Isa::F sigmoid(typename Isa::F x) {
    return within_bound<Isa>(x) / (Isa::set1(1.0f) + logistic_power<Isa>(x));
}

template <class Isa, class T>
RLHF_TARGET void swiglu(const Swiglu& swiglu, std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; i += Isa::kLanes) {
        const auto gate = load_some<Isa>(static_cast<const T*>(swiglu.gate) + i, last - i);
        const auto up = load_some<Isa>(static_cast<const T*>(swiglu.up) + i, last - i);
        store_some<Isa>(static_cast<T*>(swiglu.y) + i, gate * sigmoid<Isa>(gate) * up, last - i);
    }
}

template <class Isa, class T>
RLHF_TARGET void swiglu_backward(const SwigluBackward& swiglu, std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; i += Isa::kLanes) {
        const auto gate = load_some<Isa>(static_cast<const T*>(swiglu.gate) + i, last - i);
        const auto up = load_some<Isa>(static_cast<const T*>(swiglu.up) + i, last - i);
        const auto dy = load_some<Isa>(static_cast<const T*>(swiglu.dy) + i, last - i);
        const auto open = sigmoid<Isa>(gate), one = Isa::set1(1.0f);
        const auto slope = open * Isa::fma(gate, one - open, one);
        store_some<Isa>(static_cast<T*>(swiglu.d_gate) + i, dy * up * slope, last - i);
        store_some<Isa>(static_cast<T*>(swiglu.d_up) + i, dy * gate * open, last - i);
    }
}

template <class Isa, class T>
RLHF_TARGET void rotary(const Rotary& rotary, std::int64_t first, std::int64_t last) {
    const std::int64_t half = rotary.head_dim / 2;
    const auto direction = Isa::set1(rotary.direction);
    for (std::int64_t token = first; token < last; ++token) {
        const T* const cosines = static_cast<const T*>(rotary.cos) + token * rotary.angle_stride;
        const T* const sines = static_cast<const T*>(rotary.sin) + token * rotary.angle_stride;
        for (std::int64_t i = 0; i < half; i += Isa::kLanes) {
            const std::int64_t left = half - i;
            const auto cos = load_some<Isa>(cosines + i, left), sin = load_some<Isa>(sines + i, left) * direction;
            for (std::int64_t head = 0; head < rotary.heads; ++head) {
                const T* const x = static_cast<const T*>(rotary.x) + token * rotary.token_stride +
                                   head * rotary.head_stride + i;
                T* const y = static_cast<T*>(rotary.y) + (token * rotary.heads + head) * rotary.head_dim + i;
                const auto low = load_some<Isa>(x, left), high = load_some<Isa>(x + half, left);
                store_some<Isa>(y, low * cos - high * sin, left);
                store_some<Isa>(y + half, high * cos + low * sin, left);
            }
        }
    }
}

}  // namespace
}  // namespace rlhf::layers
