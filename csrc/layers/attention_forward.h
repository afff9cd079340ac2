// Forward: for a block of queries the scores of all keys, their softmax, and its product with the values.
#pragma once

#include <cmath>
#include <cstdint>

#include "layers/attention.h"

namespace rlhf::layers {
namespace {

template <class P>
struct ForwardScratch {
    typename P::Stored *keys, *values;  // (keys, depth), (columns, keys)
    typename P::Cell *queries, *shares;  // [step of depth][query], [step of keys][query]
    float *scores, *tile, *row;          // (keys, queries), (columns, queries), (columns,)

    static ForwardScratch from(Scratch& scratch, const AttentionShape<P>& shape) {
        constexpr std::int64_t kQueries = AttentionShape<P>::kQueries;
        using Stored = typename P::Stored;
        using Cell = typename P::Cell;
        return {scratch.take<Stored>(shape.keys() * shape.depth()),
                scratch.take<Stored>(shape.keys() * shape.columns()),
                scratch.take<Cell>(shape.depth() / P::kDepth * kQueries),
                scratch.take<Cell>(shape.keys() / P::kDepth * kQueries),
                scratch.take<float>(shape.keys() * kQueries),
                scratch.take<float>(shape.columns() * kQueries),
                scratch.take<float>(shape.columns())};
    }
};

template <class P>
std::int64_t forward_bytes(std::int64_t length, std::int64_t head_dim) {
    Scratch scratch(nullptr);
    ForwardScratch<P>::from(scratch, AttentionShape<P>{length, head_dim});
    return scratch.used();
}

// Scores of the block's keys, scaled and masked; `most` (queries,) is their maximum.
template <class P>
RLHF_TARGET void score(const ForwardScratch<P>& s, const QueryBlock<P>& block, const AttentionShape<P>& shape,
                       float scale, float* most) {
    using Isa = typename P::Isa;
    constexpr int kQueries = AttentionShape<P>::kQueries;
    typename P::F highest[Isa::kGroups], sum[Isa::kRows][Isa::kGroups];
    for (auto& lanes : highest) lanes = Isa::set1(kLowest);
    float* out = s.scores;
    for (std::int64_t key = block.first_key; key < block.last_key; key += Isa::kRows) {
        tile<P, Isa::kGroups>(s.keys + key * shape.depth(), shape.depth(), s.queries, kQueries,
                              shape.depth() / P::kDepth, sum);
        const bool cuts = block.cuts(key);
        for (int r = 0; r < Isa::kRows; ++r, out += kQueries) {
            for (int g = 0; g < Isa::kGroups; ++g) {
                auto z = sum[r][g] * Isa::set1(scale);
                if (cuts) z = z + block.penalty(key + r, g);
                highest[g] = Isa::max(highest[g], z);
                Isa::store(out + g * Isa::kLanes, z);
            }
        }
    }
    for (int g = 0; g < Isa::kGroups; ++g) Isa::store(most + g * Isa::kLanes, highest[g]);
}

// shares = e^(score - most), and their sums (queries,)
template <class P>
RLHF_TARGET void exponentiate(const ForwardScratch<P>& s, std::int64_t keys, const float* most, float* sums) {
    using Isa = typename P::Isa;
    constexpr int kQueries = AttentionShape<P>::kQueries;
    for (int g = 0; g < Isa::kGroups; ++g) {
        const auto highest = Isa::load(most + g * Isa::kLanes);
        auto sum = Isa::set1(0.0f);
        for (std::int64_t key = 0; key < keys; key += P::kDepth) {
            typename P::F share[P::kDepth];
            RLHF_UNROLL
            for (int i = 0; i < P::kDepth; ++i) {
                const auto z = Isa::load(s.scores + (key + i) * kQueries + g * Isa::kLanes);
                share[i] = exp<Isa>(floored<Isa>(z - highest));
                sum = sum + share[i];
            }
            P::store(s.shares + key / P::kDepth * kQueries + g * Isa::kLanes, P::round(share));
        }
        Isa::store(sums + g * Isa::kLanes, sum);
    }
}

// tile (columns, queries) = values times shares, over their sums
template <class P>
RLHF_TARGET void mix(const ForwardScratch<P>& s, const QueryBlock<P>& block, const AttentionShape<P>& shape,
                     const float* sums) {
    using Isa = typename P::Isa;
    constexpr int kQueries = AttentionShape<P>::kQueries;
    typename P::F share[Isa::kGroups], sum[Isa::kRows][Isa::kGroups];
    for (int g = 0; g < Isa::kGroups; ++g) share[g] = Isa::set1(1.0f) / Isa::load(sums + g * Isa::kLanes);
    for (std::int64_t d = 0; d < shape.head_dim; d += Isa::kRows) {
        tile<P, Isa::kGroups>(s.values + d * shape.keys() + block.first_key, shape.keys(), s.shares, kQueries,
                              (block.last_key - block.first_key) / P::kDepth, sum);
        for (int r = 0; r < Isa::kRows; ++r) {
            for (int g = 0; g < Isa::kGroups; ++g) {
                Isa::store(s.tile + (d + r) * kQueries + g * Isa::kLanes, sum[r][g] * share[g]);
            }
        }
    }
}

template <class P, class T>
RLHF_TARGET void attention_forward(const AttentionForward& forward, const AttentionTask& task) {
    constexpr int kQueries = AttentionShape<P>::kQueries;
    const Attention& a = forward.attention;
    const AttentionShape<P> shape{task.last - task.first, a.head_dim};
    Scratch scratch(task.scratch);
    const auto s = ForwardScratch<P>::from(scratch, shape);
    copy_rows<P>(head_rows<T>(a.k, task.first, task.kv_head), shape.length, a.head_dim, s.keys, shape.keys(),
                 shape.depth());
    transpose_rows<P>(head_rows<T>(a.v, task.first, task.kv_head), shape.length, a.head_dim, s.values, shape.keys(),
                      shape.columns());
    const std::int64_t group = a.heads / a.kv_heads;
    for (std::int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
        for (std::int64_t q = 0; q < shape.length; q += kQueries) {
            const QueryBlock<P> block(q, shape, a.window);
            float most[kQueries], sums[kQueries];
            pack_queries<P>(head_rows<T>(a.q, task.first + q, head), block.count, a.head_dim, s.queries);
            score<P>(s, block, shape, a.scale, most);
            exponentiate<P>(s, block.last_key - block.first_key, most, sums);
            mix<P>(s, block, shape, sums);
            T* const out = static_cast<T*>(forward.out) + ((task.first + q) * a.heads + head) * a.head_dim;
            write_queries<P>(s.tile, block.count, a.head_dim, out, a.heads * a.head_dim, 1.0f, s.row);
            float* const log_sum = forward.log_sum + head * a.tokens + task.first + q;
            for (std::int64_t i = 0; i < block.count; ++i) log_sum[i] = most[i] + std::log(sums[i]);
        }
    }
}

}  // namespace
}  // namespace rlhf::layers
