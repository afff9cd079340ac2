// Forward in tiles: for a block of queries of one head the scores of all keys, their softmax, and its product with the
// values.
#pragma once

#include <cstdint>

#include "tile_attention.h"

namespace rlhf {
namespace {

struct TileForwardScratch {
    std::int64_t keys, depth;            // padded
    std::uint32_t *packed_keys, *values;  // [block of keys][depth / 2][32], [keys / 2][depth]
    std::uint16_t *queries, *shares;      // (32, depth), (32, stride)
    float *scores, *out;                  // (32, stride), (32, 32)

    // Between the rows of a block of queries: not a multiple of 4 KiB, at which rows compete for the same lines of cache
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

// Scores of a query to the shares of the keys [first, last) that it sees, 0 for the other of the keys [begin, end), not yet
// divided by their sum. Returns the sum; 2^most is what they were divided by.
RLHF_TARGET inline float exponentiate(float* scores, float scale, std::int64_t first, std::int64_t last,
                                      std::int64_t begin, std::int64_t end, std::uint16_t* shares, float& most) {
    const std::int64_t from = first / kLanes * kLanes, to = round_up(last, kLanes);
    const __m512 lowest = Avx512::set1(kLowest);
    __m512 highest = lowest, sum = Avx512::set1(0.0f);
    for (std::int64_t key = from; key < to; key += kLanes) {
        const auto seen = static_cast<__mmask16>(lanes_below(last - key) & ~lanes_below(first - key));
        const __m512 z = _mm512_mask_mul_ps(lowest, seen, Avx512::load(scores + key), Avx512::set1(scale));
        highest = Avx512::max(highest, z);
        Avx512::store(scores + key, z);
    }
    most = _mm512_reduce_max_ps(highest);
    std::fill(shares + begin, shares + from, std::uint16_t{0});
    for (std::int64_t key = from; key < to; key += kLanes) {
        const __m512 share = power_of_2(Avx512::load(scores + key) - Avx512::set1(most));
        sum = sum + share;
        Avx512::narrow(shares + key, share);
    }
    std::fill(shares + to, shares + end, std::uint16_t{0});
    return _mm512_reduce_add_ps(sum);
}

// out (32, 32) of the columns from d on, over the sums of the rows
RLHF_TARGET inline void write_rows(const float* out, const float* sums, std::int64_t count, std::int64_t columns,
                                   std::uint16_t* to, std::int64_t stride) {
    for (std::int64_t i = 0; i < count; ++i, out += kBlock, to += stride) {
        const __m512 factor = Avx512::set1(1.0f / sums[i]);
        for (std::int64_t d = 0; d < kBlock && d < columns; d += kLanes) {
            narrow_some(to + d, Avx512::load(out + d) * factor, columns - d);
        }
    }
}

RLHF_TARGET inline void tile_forward_block(const AttentionForward& forward, const AttentionTask& task,
                                           const TileForwardScratch& s, const TileQueries& block, std::int64_t head) {
    const Attention& a = forward.attention;
    const std::int64_t token = task.first + block.first, steps = s.depth / kBlock;
    copy_rows({head_rows<std::uint16_t>(a.q, token, head), block.count, a.head_dim}, kBlock, s.depth, s.queries);
    for (std::int64_t key = block.first_key; key < block.last_key; key += kBlock) {
        multiply_tiles<false>(s.queries, s.depth, s.packed_keys + key * s.depth / 2, kBlock, steps, s.scores + key,
                              s.stride());
    }
    float most[kBlock] = {}, sums[kBlock];
    std::fill_n(sums, kBlock, 1.0f);
    for (std::int64_t i = 0; i < block.count; ++i) {
        const std::int64_t query = block.first + i;
        sums[i] = exponentiate(s.scores + i * s.stride(), a.scale * kLog2E, block.first_seen(query), query + 1,
                               block.first_key, block.last_key, s.shares + i * s.stride(), most[i]);
    }
    for (std::int64_t i = 0; i < block.count; i += kLanes) {
        const __m512 log_sum = Avx512::fma(Avx512::load(most + i), Avx512::set1(kLn2), log<Avx512>(Avx512::load(sums + i)));
        _mm512_mask_storeu_ps(forward.log_sum + head * a.tokens + token + i,
                              static_cast<__mmask16>(lanes_below(block.count - i)), log_sum);
    }
    auto* const out = static_cast<std::uint16_t*>(forward.out) + (token * a.heads + head) * a.head_dim;
    for (std::int64_t d = 0; d < a.head_dim; d += kBlock) {
        multiply_tiles<false>(s.shares + block.first_key, s.stride(), s.values + block.first_key / 2 * s.depth + d,
                              s.depth, (block.last_key - block.first_key) / kBlock, s.out, kBlock);
        write_rows(s.out, sums, block.count, a.head_dim - d, out + d, a.heads * a.head_dim);
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
    for (std::int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
        for (std::int64_t q = 0; q < length; q += kBlock) {
            tile_forward_block(forward, task, s, TileQueries(q, length, a.window), head);
        }
    }
}

}  // namespace
}  // namespace rlhf
