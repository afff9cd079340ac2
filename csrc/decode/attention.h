// Attention of one new token: the query heads of one key-value head side by side in the lanes of a register, so that
// each key is read once for all of them; then the values, each read once for some heads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "decode/product.h"
#include "isa/vectors.h"

namespace rlhf::decode {
namespace {

constexpr int kKeys = 8;   // keys that meet the queries together
constexpr int kHeads = 4;  // heads for which a value is read once

// Queries [step][lane], scores [position][lane] and some heads' outputs, in float units
template <class D>
std::int64_t attention_scratch(std::int64_t head_dim, std::int64_t positions) {
    return (steps_of<D>(head_dim) + positions) * D::Isa::kLanes + kHeads * head_dim;
}

template <class D, int K>
RLHF_INLINE void score_keys(const typename D::Stored* keys, std::int64_t head_dim, const typename D::QueryCell* queries,
                            float* scores) {
    using Isa = typename D::Isa;
    typename D::F sum[K];
    RLHF_UNROLL
    for (int k = 0; k < K; ++k) sum[k] = Isa::set1(0.0f);
    for (std::int64_t step = 0; step < head_dim / D::kDepth; ++step) {
        const auto q = D::load_query(queries + step * Isa::kLanes);
        RLHF_UNROLL
        for (int k = 0; k < K; ++k) {
            sum[k] = D::step(sum[k], q, D::broadcast_stored(keys + k * head_dim + step * D::kDepth));
        }
    }
    RLHF_UNROLL
    for (int k = 0; k < K; ++k) Isa::store(scores + k * Isa::kLanes, sum[k]);
}

// Keys or values, a position a step, and no more than leaves room in second-level cache
inline Prefetch fetch(const void* begin, std::int64_t positions, std::int64_t position_bytes) {
    constexpr std::int64_t kMost = 256 << 10;
    const auto* first = static_cast<const char*>(begin);
    return {first, first + std::min(positions * position_bytes, kMost), position_bytes};
}

RLHF_INLINE void step_by(std::int64_t positions, Prefetch& prefetch) {
    for (std::int64_t p = 0; p < positions; ++p) prefetch.step();
}

// scores[position][lane]: keys times queries
template <class D>
struct VectorScores {
    RLHF_TARGET static void run(const typename D::Stored* keys, std::int64_t head_dim,
                                const typename D::QueryCell* queries, std::int64_t positions, float* scores,
                                Prefetch& prefetch) {
        constexpr std::int64_t lanes = D::Isa::kLanes;
        std::int64_t p = 0;
        for (; p + kKeys <= positions; p += kKeys) {
            step_by(kKeys, prefetch);
            score_keys<D, kKeys>(keys + p * head_dim, head_dim, queries, scores + p * lanes);
        }
        for (; p < positions; ++p) score_keys<D, 1>(keys + p * head_dim, head_dim, queries, scores + p * lanes);
    }
};

// [position][lane] -> [position][kHeads] in place, for heads that leave most lanes empty; returns a position's stride
inline std::int64_t compacted(float* scores, std::int64_t positions, std::int64_t lanes, std::int64_t heads) {
    if (heads > kHeads || lanes <= kHeads) return lanes;
    for (std::int64_t p = 0; p < positions; ++p) {
        std::memmove(scores + p * kHeads, scores + p * lanes, sizeof(float[kHeads]));
    }
    return kHeads;
}

// Lanes that are `stride` apart belong to one head: each becomes their largest or their sum.
template <class Isa, class Join>
RLHF_INLINE typename Isa::F joined(typename Isa::F x, std::int64_t stride, Join join) {
    float lanes[Isa::kLanes];
    Isa::store(lanes, x);
    for (std::int64_t i = stride; i < Isa::kLanes; ++i) lanes[i % stride] = join(lanes[i % stride], lanes[i]);
    for (std::int64_t i = stride; i < Isa::kLanes; ++i) lanes[i] = lanes[i % stride];
    return Isa::load(lanes);
}

// Scores [position][stride] become e^(scale (score - max)); returns their sums
template <class Isa>
RLHF_INLINE typename Isa::F weigh(float* scores, std::int64_t positions, std::int64_t stride, float scale,
                                  Prefetch& prefetch) {
    const std::int64_t count = (positions * stride + Isa::kLanes - 1) / Isa::kLanes * Isa::kLanes;
    std::fill(scores + positions * stride, scores + count, kLowest);
    auto max = Isa::set1(kLowest), sum = Isa::set1(0.0f);
    for (std::int64_t i = 0; i < count; i += Isa::kLanes) max = Isa::max(Isa::load(scores + i), max);
    max = joined<Isa>(max, stride, [](float a, float b) { return std::max(a, b); });
    for (std::int64_t i = 0; i < count; i += Isa::kLanes) {
        step_by(Isa::kLanes / stride, prefetch);
        const auto below = Isa::load(scores + i) - max;
        const auto e = exp<Isa>(floored<Isa>(below * Isa::set1(scale)));
        Isa::store(scores + i, e);
        sum = sum + e;
    }
    return joined<Isa>(sum, stride, [](float a, float b) { return a + b; });
}

// out[h][d] = sum over positions of weights[.][h] * value[d] for H heads and V registers of each
template <class D, int H, int V>
RLHF_INLINE void mix_values(const typename D::Stored* values, std::int64_t head_dim, const float* weights,
                            std::int64_t stride, std::int64_t positions, float* out, Prefetch& prefetch) {
    using Isa = typename D::Isa;
    typename D::F sum[H][V];
    RLHF_UNROLL
    for (int h = 0; h < H; ++h) {
        RLHF_UNROLL
        for (int v = 0; v < V; ++v) sum[h][v] = Isa::set1(0.0f);
    }
    for (std::int64_t p = 0; p < positions; ++p, values += head_dim, weights += stride) {
        prefetch.step();
        typename D::F value[V];
        RLHF_UNROLL
        for (int v = 0; v < V; ++v) value[v] = load_wide<Isa>(values + v * Isa::kLanes);
        RLHF_UNROLL
        for (int h = 0; h < H; ++h) {
            const auto w = Isa::set1(weights[h]);
            RLHF_UNROLL
            for (int v = 0; v < V; ++v) sum[h][v] = Isa::fma(w, value[v], sum[h][v]);
        }
    }
    RLHF_UNROLL
    for (int h = 0; h < H; ++h) {
        RLHF_UNROLL
        for (int v = 0; v < V; ++v) Isa::store(out + h * head_dim + v * Isa::kLanes, sum[h][v]);
    }
}

// out (H, head_dim)
template <class D, int H>
RLHF_TARGET void mix_heads(const typename D::Stored* values, std::int64_t head_dim, const float* weights,
                           std::int64_t stride, std::int64_t positions, float* out, Prefetch& prefetch) {
    constexpr std::int64_t lanes = D::Isa::kLanes;
    constexpr int V = lanes == 16 ? 4 : 2;  // H V sums, V values and a weight fit the registers
    std::int64_t d = 0;
    for (; d + V * lanes <= head_dim; d += V * lanes) {
        mix_values<D, H, V>(values + d, head_dim, weights, stride, positions, out + d, prefetch);
    }
    for (; d + lanes <= head_dim; d += lanes) {
        mix_values<D, H, 1>(values + d, head_dim, weights, stride, positions, out + d, prefetch);
    }
    for (; d < head_dim; ++d) {
        for (int h = 0; h < H; ++h) {
            float sum = 0;
            for (std::int64_t p = 0; p < positions; ++p) {
                sum += weights[p * stride + h] * to_float(values[p * head_dim + d]);
            }
            out[h * head_dim + d] = sum;
        }
    }
}

template <class D, class Scores>
RLHF_TARGET void attend(const AttentionTask& task) {
    using Isa = typename D::Isa;
    using Stored = typename D::Stored;
    constexpr std::int64_t lanes = Isa::kLanes;
    const std::int64_t steps = steps_of<D>(task.head_dim), positions = task.positions;
    const auto *keys = static_cast<const Stored*>(task.keys), *values = static_cast<const Stored*>(task.values);
    const std::int64_t position_bytes = task.head_dim * static_cast<std::int64_t>(sizeof *keys);
    Prefetch fetch_after = fetch(task.after, task.after_positions, position_bytes);
    auto* queries = reinterpret_cast<typename D::QueryCell*>(task.scratch);
    float *scores = task.scratch + steps * lanes, *mixed = scores + positions * lanes;
    for (std::int64_t head = 0; head < task.heads; head += lanes) {
        const std::int64_t present = std::min(lanes, task.heads - head);
        std::fill_n(queries, steps * lanes, typename D::QueryCell(0));
        for (std::int64_t h = 0; h < present; ++h) {
            const float* query = task.query + (head + h) * task.head_dim;
            for (std::int64_t step = 0; step < steps; ++step) {
                queries[step * lanes + h] = D::query_cell(query + step * D::kDepth);
            }
        }
        Prefetch fetch_values = fetch(values, positions, position_bytes);
        Scores::run(keys, task.head_dim, queries, positions, scores, fetch_values);
        float sums[lanes];
        const std::int64_t stride = compacted(scores, positions, lanes, present);
        Isa::store(sums, weigh<Isa>(scores, positions, stride, task.scale, fetch_values));
        for (std::int64_t h = 0; h < present; h += kHeads) {
            const std::int64_t heads = std::min<std::int64_t>(kHeads, present - h);
            const auto mix = heads == 4 ? mix_heads<D, 4> : heads == 3 ? mix_heads<D, 3> : heads == 2 ? mix_heads<D, 2>
                                                                                                   : mix_heads<D, 1>;
            mix(values, task.head_dim, scores + h, stride, positions, mixed, fetch_after);
            auto* out = static_cast<typename D::Activation*>(task.out) + (head + h) * task.head_dim;
            for (std::int64_t i = 0; i < heads; ++i) {
                const float share = 1 / sums[h + i];
                for (std::int64_t d = i * task.head_dim; d < (i + 1) * task.head_dim; ++d) {
                    store_element(out + d, mixed[d] * share);
                }
            }
        }
    }
}

}  // namespace
}  // namespace rlhf::decode
