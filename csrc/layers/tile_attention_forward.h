// Forward in tiles: for a block of queries of one head the scores of all keys, their softmax, and its product with the
// values.
#pragma once

#include <cstdint>

#include "layers/tile_attention.h"

namespace rlhf::layers {
namespace {

struct TileForwardScratch {
    std::int64_t keys, depth;             // padded
    std::uint32_t *packed_keys, *values;  // [block of keys][depth / 2][32], [keys / 2][depth]
    std::uint16_t *queries, *shares;      // (32, depth), (32, stride)
    float *scores, *out;                  // (32, stride), (32, 32)

    // Between rows, no multiple of 4 KiB: at those, rows compete for the same lines of the cache
    std::int64_t stride() const { return keys + kBlock; }

    static TileForwardScratch from(Scratch& scratch, std::int64_t length, std::int64_t head_dim) {
        TileForwardScratch s{};
        s.keys = round_up(length, kBlock), s.depth = round_up(head_dim, kBlock);
        s.packed_keys = scratch.take<std::uint32_t>(s.keys * s.depth / 2);
        s.values = scratch.take<std::uint32_t>(s.keys * s.depth / 2);
        s.queries = scratch.take<std::uint16_t>(kBlock * s.depth);
        s.shares = scratch.take<std::uint16_t>(kBlock * s.stride());
        s.scores = scratch.take<float>(kBlock * s.stride());
        s.out = scratch.take<float>(kBlock * kBlock);
        return s;
    }
};

inline std::int64_t tile_forward_bytes(std::int64_t length, std::int64_t head_dim) {
    Scratch scratch(nullptr);
    TileForwardScratch::from(scratch, length, head_dim);
    return scratch.used();
}

// 16 scores times `scale`, those of keys that are not seen as low as can be
RLHF_INLINE __m512 scale_scores(float* scores, float scale, std::uint32_t seen) {
    const __m512 z = _mm512_mask_mul_ps(Avx512::set1(kLowest), static_cast<__mmask16>(seen), Avx512::load(scores),
                                        Avx512::set1(scale));
    Avx512::store(scores, z);
    return z;
}

// Scores of a query, scaled, and their maximum: as low as can be for those of the keys [0, keys) outside [first, last)
RLHF_TARGET inline float mask_scores(float* scores, float scale, std::int64_t first, std::int64_t last,
                                     std::int64_t keys) {
    __m512 even = Avx512::set1(kLowest), odd = even;  // two maxima: one would wait for itself
    std::int64_t key = 0;
    for (; key < first; key += kLanes) {
        const std::uint32_t seen = lanes_below(last - key) & ~lanes_below(first - key);
        even = Avx512::max(even, scale_scores(scores + key, scale, seen));
    }
    for (; key + kBlock <= last; key += kBlock) {
        even = Avx512::max(even, scale_scores(scores + key, scale, ~0u));
        odd = Avx512::max(odd, scale_scores(scores + key + kLanes, scale, ~0u));
    }
    for (; key < keys; key += kLanes) {
        odd = Avx512::max(odd, scale_scores(scores + key, scale, lanes_below(last - key)));
    }
    return _mm512_reduce_max_ps(Avx512::max(even, odd));
}

// shares = 2^(score - most). Returns their sum.
RLHF_TARGET inline float exponentiate(const float* scores, float most, std::int64_t keys, std::uint16_t* shares) {
    const __m512 highest = Avx512::set1(most);
    __m512 even = Avx512::set1(0.0f), odd = even;
    for (std::int64_t key = 0; key < keys; key += kBlock) {
        const __m512 low = power_of_2(Avx512::load(scores + key) - highest);
        const __m512 high = power_of_2(Avx512::load(scores + key + kLanes) - highest);
        even = even + low, odd = odd + high;
        _mm512_storeu_si512(shares + key, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    return _mm512_reduce_add_ps(even + odd);
}

// Shares of the block, not yet divided by their sums; factors (32,) are 1 / sum.
RLHF_TARGET inline void softmax(const TileForwardScratch& s, const TileQueries& block, float scale, float* log_sum,
                                float* factors) {
    const std::int64_t keys = block.last_key - block.first_key;
    float most[kBlock] = {}, sums[kBlock] = {};
    for (std::int64_t i = 0; i < block.count; ++i) {
        const std::int64_t query = block.first + i, first = block.first_seen(query) - block.first_key;
        most[i] = mask_scores(s.scores + i * s.stride(), scale * kLog2E, first, query + 1 - block.first_key, keys);
    }
    for (std::int64_t i = 0; i < block.count; ++i) {  // of its own: a row would wait for its maximum
        sums[i] = exponentiate(s.scores + i * s.stride(), most[i], keys, s.shares + i * s.stride());
    }
    for (std::int64_t i = 0; i < block.count; i += kLanes) {
        const __m512 sum = Avx512::load(sums + i);
        const __m512 log_sums = Avx512::fma(Avx512::load(most + i), Avx512::set1(kLn2), log<Avx512>(sum));
        _mm512_mask_storeu_ps(log_sum + i, static_cast<__mmask16>(lanes_below(block.count - i)), log_sums);
        Avx512::store(factors + i, Avx512::set1(1.0f) / sum);
    }
}

RLHF_TARGET inline void tile_forward_block(const AttentionForward& forward, const AttentionTask& task,
                                           const TileForwardScratch& s, const TileQueries& block, std::int64_t head) {
    const Attention& a = forward.attention;
    const std::int64_t token = task.first + block.first, steps = s.depth / kBlock;
    copy_rows({head_rows<std::uint16_t>(a.q, token, head), block.count, a.head_dim}, kBlock, s.depth, s.queries);
    for (std::int64_t key = block.first_key; key < block.last_key; key += kBlock) {
        multiply_block<false>(s.queries, s.depth, s.packed_keys + key * s.depth / 2, kBlock, steps,
                              s.scores + key - block.first_key, s.stride());
    }
    float factors[kBlock];
    softmax(s, block, a.scale, forward.log_sum + head * a.tokens + token, factors);
    auto* const out = static_cast<std::uint16_t*>(forward.out) + (token * a.heads + head) * a.head_dim;
    for (std::int64_t d = 0; d < a.head_dim; d += kBlock) {
        multiply_block<false>(s.shares, s.stride(), s.values + block.first_key / 2 * s.depth + d, s.depth,
                              (block.last_key - block.first_key) / kBlock, s.out, kBlock);
        for (std::int64_t i = 0; i < block.count; ++i) {
            const float* const row = s.out + i * kBlock;
            const __m512 factor = Avx512::set1(factors[i]);
            narrow_some(out + i * a.heads * a.head_dim + d, Avx512::load(row) * factor,
                        Avx512::load(row + kLanes) * factor, a.head_dim - d);
        }
    }
}

RLHF_TARGET inline void tile_attention_forward(const AttentionForward& forward, const AttentionTask& task) {
    const Attention& a = forward.attention;
    const std::int64_t length = task.last - task.first, group = a.heads / a.kv_heads;
    Scratch scratch(task.scratch);
    const auto s = TileForwardScratch::from(scratch, length, a.head_dim);
    const PaddedRows keys{head_rows<std::uint16_t>(a.k, task.first, task.kv_head), length, a.head_dim};
    const PaddedRows values{head_rows<std::uint16_t>(a.v, task.first, task.kv_head), length, a.head_dim};
    for (std::int64_t key = 0; key < s.keys; key += kBlock) {
        pack_rows(keys, key, s.depth, s.packed_keys + key * s.depth / 2);
    }
    zip_rows(values, s.keys, s.depth, s.values);
    const Tiles tiles;
    for (std::int64_t q = 0; q < length; q += kBlock) {
        const TileQueries block(q, length, a.window);
        for (std::int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
            tile_forward_block(forward, task, s, block, head);
        }
    }
}

}  // namespace
}  // namespace rlhf::layers
