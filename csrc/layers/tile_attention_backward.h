// Backward in tiles: for a block of queries of some heads that read the same keys, the shares of all keys again, from
// the log-sums that the forward kept, and with them the gradients of queries, keys and values (Dao 2023,
// "FlashAttention-2"). Shares lie with keys in rows and queries in the lanes, as those of keys and values take them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "layers/tile_attention.h"

namespace rlhf::layers {
namespace {

constexpr std::int64_t kHeads = 4;  // at most, in a block of queries: a sum over them is one product

struct TileBackwardScratch {
    std::int64_t keys, depth;                       // padded
    std::uint16_t *key_rows, *value_rows;           // (keys, depth)
    std::uint16_t* key_columns;                     // (depth, stride)
    std::uint32_t *queries, *d_out;                 // [head][depth / 2][32]
    std::uint32_t *queries_zipped, *d_out_zipped;   // [head][16][depth]
    std::uint32_t* d_scores_zipped;                 // [head][keys / 2][32]
    std::uint16_t *shares, *d_scores;               // (32 keys, [head][32])
    float *scores, *slopes;                         // (32, 32)
    float *log_sums, *dots;                         // [head][32]
    float *dk, *dv;                                 // (keys, depth)

    // Between rows of key_columns, no multiple of 4 KiB: at those, rows compete for the same lines of the cache
    std::int64_t stride() const { return keys + kBlock; }

    static TileBackwardScratch from(Scratch& scratch, std::int64_t length, std::int64_t head_dim) {
        TileBackwardScratch s{};
        s.keys = round_up(length, kBlock), s.depth = round_up(head_dim, kBlock);
        for (auto* rows : {&s.key_rows, &s.value_rows}) *rows = scratch.take<std::uint16_t>(s.keys * s.depth);
        s.key_columns = scratch.take<std::uint16_t>(s.depth * s.stride());
        for (auto* cells : {&s.queries, &s.d_out, &s.queries_zipped, &s.d_out_zipped}) {
            *cells = scratch.take<std::uint32_t>(kHeads * s.depth / 2 * kBlock);
        }
        s.d_scores_zipped = scratch.take<std::uint32_t>(kHeads * s.keys / 2 * kBlock);
        for (auto* rows : {&s.shares, &s.d_scores}) *rows = scratch.take<std::uint16_t>(kBlock * kHeads * kBlock);
        for (auto* tile : {&s.scores, &s.slopes}) *tile = scratch.take<float>(kBlock * kBlock);
        for (auto* queries : {&s.log_sums, &s.dots}) *queries = scratch.take<float>(kHeads * kBlock);
        for (auto* sums : {&s.dk, &s.dv}) *sums = scratch.take<float>(s.keys * s.depth);
        return s;
    }
};

inline std::int64_t tile_backward_bytes(std::int64_t length, std::int64_t head_dim) {
    Scratch scratch(nullptr);
    TileBackwardScratch::from(scratch, length, head_dim);
    return scratch.used();
}

// The block's queries and output gradients as operands, their log-sums in powers of 2, and d_out . out of each
RLHF_TARGET inline void load_queries(const AttentionBackward& backward, const TileBackwardScratch& s,
                                     const TileQueries& block, std::int64_t token, std::int64_t head,
                                     std::int64_t slot) {
    const Attention& a = backward.attention;
    const std::int64_t at = slot * s.depth / 2 * kBlock;
    const PaddedRows queries{head_rows<std::uint16_t>(a.q, token, head), block.count, a.head_dim};
    const PaddedRows out{head_rows<std::uint16_t>(backward.out, token, head), block.count, a.head_dim};
    const PaddedRows d_out{head_rows<std::uint16_t>(backward.d_out, token, head), block.count, a.head_dim};
    pack_rows(queries, 0, s.depth, s.queries + at);
    pack_rows(d_out, 0, s.depth, s.d_out + at);
    zip_rows(queries, kBlock, s.depth, s.queries_zipped + at);
    zip_rows(d_out, kBlock, s.depth, s.d_out_zipped + at);
    const float* const log_sum = backward.log_sum + head * a.tokens + token;
    for (std::int64_t i = 0; i < kBlock; ++i) {
        __m512 dot = Avx512::set1(0.0f);
        for (std::int64_t d = 0; d < s.depth; d += kBlock) {
            const __mmask32 there = out.columns(d);
            dot = PairProduct::step(dot, out.part(i, d, there), d_out.part(i, d, there));
        }
        s.dots[slot * kBlock + i] = _mm512_reduce_add_ps(dot);
        s.log_sums[slot * kBlock + i] = i < block.count ? log_sum[i] * kLog2E : 1e30f;  // no share beyond the last
    }
}

RLHF_INLINE void store_halves(__m512i x, std::uint16_t* low, std::uint16_t* high) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm512_castsi512_si256(x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm512_extracti64x4_epi64(x, 1));
}

// Scores and slopes of 32 keys from `key` on to shares and d_scores of the head in `slot`
RLHF_TARGET inline void differentiate(const TileBackwardScratch& s, const TileQueries& block, float scale,
                                      std::int64_t key, std::int64_t slot) {
    const __m512 factor = Avx512::set1(scale * kLog2E);
    const bool cuts = block.cuts(key);
    std::uint32_t* const zipped = s.d_scores_zipped + (slot * s.keys + key) / 2 * kBlock;
    for (std::int64_t query = 0; query < kBlock; query += kLanes) {
        const __m512 log_sum = Avx512::load(s.log_sums + slot * kBlock + query);
        const __m512 dot = Avx512::load(s.dots + slot * kBlock + query);
        for (std::int64_t row = 0; row < kBlock; row += 2) {
            __m512 share[2], d_score[2];
            RLHF_UNROLL
            for (int i = 0; i < 2; ++i) {
                const std::int64_t at = (row + i) * kBlock + query;
                share[i] = power_of_2(_mm512_fmsub_ps(Avx512::load(s.scores + at), factor, log_sum));
                if (cuts) share[i] = _mm512_maskz_mov_ps(block.seeing(key + row + i, block.first + query), share[i]);
                d_score[i] = share[i] * (Avx512::load(s.slopes + at) - dot);
            }
            const auto shares = (__m512i)_mm512_cvtne2ps_pbh(share[1], share[0]);
            const auto d_scores = (__m512i)_mm512_cvtne2ps_pbh(d_score[1], d_score[0]);
            const std::int64_t out = row * kHeads * kBlock + slot * kBlock + query, next = out + kHeads * kBlock;
            store_halves(shares, s.shares + out, s.shares + next);
            store_halves(d_scores, s.d_scores + out, s.d_scores + next);
            _mm512_storeu_si512(zipped + row / 2 * kBlock + query, zip_halves(d_scores));
        }
    }
}

// dk, dv and d_scores_zipped of 32 keys from `key` on, for all heads of the block
RLHF_TARGET inline void add_keys(const TileBackwardScratch& s, const TileQueries& block, float scale, std::int64_t key,
                                 std::int64_t heads) {
    const std::int64_t steps = s.depth / kBlock, rows = key * s.depth;
    for (std::int64_t slot = 0; slot < heads; ++slot) {
        const std::int64_t at = slot * s.depth / 2 * kBlock;
        multiply_block<false>(s.key_rows + rows, s.depth, s.queries + at, kBlock, steps, s.scores, kBlock);
        multiply_block<false>(s.value_rows + rows, s.depth, s.d_out + at, kBlock, steps, s.slopes, kBlock);
        differentiate(s, block, scale, key, slot);
    }
    for (std::int64_t d = 0; d < s.depth; d += kBlock) {
        float *const dk = s.dk + rows + d, *const dv = s.dv + rows + d;
        multiply_block<true>(s.shares, kHeads * kBlock, s.d_out_zipped + d, s.depth, heads, dv, s.depth);
        multiply_block<true>(s.d_scores, kHeads * kBlock, s.queries_zipped + d, s.depth, heads, dk, s.depth);
    }
}

// dq of the head in `slot`: (depth, queries) = keys times d_scores, transposed
RLHF_TARGET inline void write_query_gradient(const TileBackwardScratch& s, const TileQueries& block, const Attention& a,
                                             std::int64_t slot, std::uint16_t* dq) {
    const __m512 scale = Avx512::set1(a.scale);
    const std::uint32_t* const d_scores = s.d_scores_zipped + (slot * s.keys + block.first_key) / 2 * kBlock;
    for (std::int64_t d = 0; d < a.head_dim; d += kBlock) {
        multiply_block<false>(s.key_columns + d * s.stride() + block.first_key, s.stride(), d_scores, kBlock,
                              (block.last_key - block.first_key) / kBlock, s.scores, kBlock);
        for (std::int64_t query = 0; query < block.count; query += kLanes) {
            __m512i low[16], high[16];
            for (int i = 0; i < 16; ++i) {
                low[i] = _mm512_loadu_si512(s.scores + i * kBlock + query);
                high[i] = _mm512_loadu_si512(s.scores + (16 + i) * kBlock + query);
            }
            transpose(low), transpose(high);
            for (std::int64_t i = 0; i < std::min(kLanes, block.count - query); ++i) {
                narrow_some(dq + (query + i) * a.heads * a.head_dim + d, _mm512_castsi512_ps(low[i]) * scale,
                            _mm512_castsi512_ps(high[i]) * scale, a.head_dim - d);
            }
        }
    }
}

// The first rows of sums (keys, depth), times `scale`
RLHF_TARGET inline void write_key_gradient(const float* sums, std::int64_t depth, const Attention& a,
                                           std::int64_t count, float scale, std::uint16_t* out) {
    for (std::int64_t i = 0; i < count; ++i, sums += depth, out += a.kv_heads * a.head_dim) {
        for (std::int64_t d = 0; d < a.head_dim; d += kBlock) {
            const __m512 low = Avx512::load(sums + d), high = Avx512::load(sums + d + kLanes);
            narrow_some(out + d, low * Avx512::set1(scale), high * Avx512::set1(scale), a.head_dim - d);
        }
    }
}

RLHF_TARGET inline void tile_backward_block(const AttentionBackward& backward, const AttentionTask& task,
                                            const TileBackwardScratch& s, const TileQueries& block, std::int64_t head,
                                            std::int64_t heads) {
    const Attention& a = backward.attention;
    const std::int64_t token = task.first + block.first;
    for (std::int64_t slot = 0; slot < heads; ++slot) load_queries(backward, s, block, token, head + slot, slot);
    for (std::int64_t key = block.first_key; key < block.last_key; key += kBlock) {
        add_keys(s, block, a.scale, key, heads);
    }
    auto* const dq = static_cast<std::uint16_t*>(backward.dq) + (token * a.heads + head) * a.head_dim;
    for (std::int64_t slot = 0; slot < heads; ++slot) {
        write_query_gradient(s, block, a, slot, dq + slot * a.head_dim);
    }
}

RLHF_TARGET inline void tile_attention_backward(const AttentionBackward& backward, const AttentionTask& task) {
    const Attention& a = backward.attention;
    const std::int64_t length = task.last - task.first, group = a.heads / a.kv_heads;
    Scratch scratch(task.scratch);
    const auto s = TileBackwardScratch::from(scratch, length, a.head_dim);
    const PaddedRows keys{head_rows<std::uint16_t>(a.k, task.first, task.kv_head), length, a.head_dim};
    const PaddedRows values{head_rows<std::uint16_t>(a.v, task.first, task.kv_head), length, a.head_dim};
    copy_rows(keys, s.keys, s.depth, s.key_rows);
    copy_rows(values, s.keys, s.depth, s.value_rows);
    transpose_rows(keys, s.keys, s.depth, s.key_columns, s.stride());
    std::fill_n(s.dk, s.keys * s.depth, 0.0f);
    std::fill_n(s.dv, s.keys * s.depth, 0.0f);
    const Tiles tiles;
    const std::int64_t last_head = (task.kv_head + 1) * group;
    for (std::int64_t head = last_head - group; head < last_head; head += kHeads) {
        for (std::int64_t q = 0; q < length; q += kBlock) {
            tile_backward_block(backward, task, s, TileQueries(q, length, a.window), head,
                                std::min(kHeads, last_head - head));
        }
    }
    const std::int64_t at = (task.first * a.kv_heads + task.kv_head) * a.head_dim;
    write_key_gradient(s.dk, s.depth, a, length, a.scale, static_cast<std::uint16_t*>(backward.dk) + at);
    write_key_gradient(s.dv, s.depth, a, length, 1.0f, static_cast<std::uint16_t*>(backward.dv) + at);
}

}  // namespace
}  // namespace rlhf::layers
