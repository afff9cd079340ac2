// What happens to one row of activations between two products, in float.
#pragma once

#include <cmath>
#include <cstdint>

#include "decode/product.h"
#include "isa/vectors.h"

namespace rlhf::decode {
namespace {

template <class D, int V>
RLHF_INLINE void add_outer_tile(const float* x, std::int64_t rank, float scale, const typename D::Stored* b,
                                std::int64_t stride, float* y) {
    using Isa = typename D::Isa;
    typename D::F sum[V];
    RLHF_UNROLL
    for (int v = 0; v < V; ++v) sum[v] = Isa::set1(0.0f);
    for (std::int64_t r = 0; r < rank; ++r) {
        const auto entry = Isa::set1(x[r]);
        RLHF_UNROLL
        for (int v = 0; v < V; ++v) {
            sum[v] = Isa::fma(entry, load_wide<Isa>(b + r * stride + v * Isa::kLanes), sum[v]);
        }
    }
    RLHF_UNROLL
    for (int v = 0; v < V; ++v) {
        float* const to = y + v * Isa::kLanes;
        Isa::store(to, Isa::fma(sum[v], Isa::set1(scale), Isa::load(to)));
    }
}

template <class D>
RLHF_TARGET void add_outer(const float* x, std::int64_t rank, float scale, const void* b, std::int64_t stride,
                           std::int64_t outputs, float* y) {
    constexpr std::int64_t lanes = D::Isa::kLanes;
    const auto* rows = static_cast<const typename D::Stored*>(b);
    std::int64_t n = 0;
    for (; n + 4 * lanes <= outputs; n += 4 * lanes) add_outer_tile<D, 4>(x, rank, scale, rows + n, stride, y + n);
    for (; n + lanes <= outputs; n += lanes) add_outer_tile<D, 1>(x, rank, scale, rows + n, stride, y + n);
    for (; n < outputs; ++n) {
        for (std::int64_t r = 0; r < rank; ++r) y[n] += scale * x[r] * to_float(rows[r * stride + n]);
    }
}

template <class D>
RLHF_TARGET void norm(const float* x, const float* weight, std::int64_t count, float eps, float* out) {
    float squares[16] = {};
    std::int64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        for (int k = 0; k < 16; ++k) squares[k] += x[i + k] * x[i + k];
    }
    for (; i < count; ++i) squares[0] += x[i] * x[i];
    double total = 0;
    for (const float square : squares) total += square;
    const float factor = static_cast<float>(1 / std::sqrt(total / static_cast<double>(count) + eps));
    for (i = 0; i < count; ++i) out[i] = x[i] * factor * weight[i];
}

template <class Isa>
RLHF_INLINE typename Isa::F silu(typename Isa::F x) {
    return within_bound<Isa>(x) * x / (Isa::set1(1.0f) + logistic_power<Isa>(x));
}

template <class D>
RLHF_TARGET void swiglu(const float* gate, const float* up, std::int64_t count, float* out) {
    using Isa = typename D::Isa;
    std::int64_t i = 0;
    for (; i + Isa::kLanes <= count; i += Isa::kLanes) {
        Isa::store(out + i, silu<Isa>(Isa::load(gate + i)) * Isa::load(up + i));
    }
    for (; i < count; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

// The element behind an odd count is 0: a product that takes pairs reads it.
template <class D>
RLHF_TARGET void round_row(const float* x, std::int64_t count, void* activation) {
    auto* out = static_cast<typename D::Activation*>(activation);
    for (std::int64_t i = 0; i < count; ++i) store_element(out + i, x[i]);
    if (count % D::kDepth != 0) store_element(out + count, 0.0f);
}

}  // namespace
}  // namespace rlhf::decode
