// Backward: for a block of queries the shares of all keys again, from the log-sums that the forward kept, and with them
// the gradients of queries, keys and values (Dao 2023, "FlashAttention-2").
#pragma once

#include <algorithm>
#include <cstdint>

#include "layers/attention.h"

namespace rlhf::layers {
namespace {

template <class P>
struct BackwardScratch {
    typename P::Stored *keys, *values, *keys_by_column;  // (keys, depth) twice, (columns, keys)
    typename P::Stored *shares, *d_scores;               // (keys, queries)
    typename P::Cell *queries, *d_out;                   // [step of depth][query]
    typename P::Cell *queries_zipped, *d_out_zipped;     // [step of queries][column]
    typename P::Cell* d_scores_zipped;                   // [step of keys][query]
    float *dk, *dv, *tile, *row;                         // (keys, columns) twice, (columns, queries), (columns,)

    static BackwardScratch from(Scratch& scratch, const AttentionShape<P>& shape) {
        constexpr std::int64_t kQueries = AttentionShape<P>::kQueries;
        using Stored = typename P::Stored;
        using Cell = typename P::Cell;
        const std::int64_t keys = shape.keys(), depth = shape.depth(), columns = shape.columns();
        return {scratch.take<Stored>(keys * depth),
                scratch.take<Stored>(keys * depth),
                scratch.take<Stored>(keys * columns),
                scratch.take<Stored>(keys * kQueries),
                scratch.take<Stored>(keys * kQueries),
                scratch.take<Cell>(depth / P::kDepth * kQueries),
                scratch.take<Cell>(depth / P::kDepth * kQueries),
                scratch.take<Cell>((kQueries + 1) / P::kDepth * columns),
                scratch.take<Cell>((kQueries + 1) / P::kDepth * columns),
                scratch.take<Cell>(keys / P::kDepth * kQueries),
                scratch.take<float>(keys * columns),
                scratch.take<float>(keys * columns),
                scratch.take<float>(columns * kQueries),
                scratch.take<float>(columns)};
    }
};

template <class P>
std::int64_t backward_bytes(std::int64_t length, std::int64_t head_dim) {
    Scratch scratch(nullptr);
    BackwardScratch<P>::from(scratch, AttentionShape<P>{length, head_dim});
    return scratch.used();
}

// (queries,): d_out . out of each query
template <class P, class T>
RLHF_TARGET void row_dots(TokenRows<T> out, TokenRows<T> d_out, std::int64_t count, std::int64_t width, float* dots) {
    using Isa = typename P::Isa;
    for (std::int64_t i = 0; i < count; ++i) {
        auto sum = Isa::set1(0.0f);
        for (std::int64_t d = 0; d < width; d += Isa::kLanes) {
            sum = Isa::fma(load_some<Isa>(out.row(i) + d, width - d), load_some<Isa>(d_out.row(i) + d, width - d), sum);
        }
        dots[i] = sum_of_lanes<Isa>(sum);
    }
}

// shares, d_scores and d_scores_zipped of the block
template <class P>
RLHF_TARGET void differentiate(const BackwardScratch<P>& s, const QueryBlock<P>& block, const AttentionShape<P>& shape,
                               float scale, const float* log_sum, const float* dots) {
    using Isa = typename P::Isa;
    constexpr int kQueries = AttentionShape<P>::kQueries;
    const std::int64_t steps = shape.depth() / P::kDepth;
    typename P::F share[Isa::kRows][Isa::kGroups], slope[Isa::kRows][Isa::kGroups];
    const auto zero = Isa::set1(0.0f);
    std::int64_t out = 0;
    for (std::int64_t key = block.first_key; key < block.last_key; key += Isa::kRows) {
        tile<P, Isa::kGroups>(s.keys + key * shape.depth(), shape.depth(), s.queries, kQueries, steps, share);
        const bool cuts = block.cuts(key);
        for (int r = 0; r < Isa::kRows; ++r) {
            for (int g = 0; g < Isa::kGroups; ++g) {
                // rounded as in the forward, so that the only key that a query sees has a share of exactly 1
                const auto score = Isa::fma(share[r][g], Isa::set1(scale), cuts ? block.penalty(key + r, g) : zero);
                share[r][g] = exp<Isa>(floored<Isa>(score - Isa::load(log_sum + g * Isa::kLanes)));
                store_row<Isa>(s.shares + out + r * kQueries + g * Isa::kLanes, share[r][g]);
            }
        }
        tile<P, Isa::kGroups>(s.values + key * shape.depth(), shape.depth(), s.d_out, kQueries, steps, slope);
        for (int r = 0; r < Isa::kRows; r += P::kDepth, out += P::kDepth * kQueries) {
            for (int g = 0; g < Isa::kGroups; ++g) {
                typename P::F both[P::kDepth];
                RLHF_UNROLL
                for (int i = 0; i < P::kDepth; ++i) {
                    both[i] = share[r + i][g] * (slope[r + i][g] - Isa::load(dots + g * Isa::kLanes));
                    store_row<Isa>(s.d_scores + out + i * kQueries + g * Isa::kLanes, both[i]);
                }
                P::store(s.d_scores_zipped + out / P::kDepth + g * Isa::kLanes, P::round(both));
            }
        }
    }
}

// tile (columns, queries) = keys times d_scores
template <class P>
RLHF_TARGET void query_gradient(const BackwardScratch<P>& s, const QueryBlock<P>& block,
                                const AttentionShape<P>& shape) {
    using Isa = typename P::Isa;
    constexpr int kQueries = AttentionShape<P>::kQueries;
    typename P::F sum[Isa::kRows][Isa::kGroups];
    for (std::int64_t d = 0; d < shape.head_dim; d += Isa::kRows) {
        tile<P, Isa::kGroups>(s.keys_by_column + d * shape.keys() + block.first_key, shape.keys(), s.d_scores_zipped,
                              kQueries, (block.last_key - block.first_key) / P::kDepth, sum);
        for (int r = 0; r < Isa::kRows; ++r) {
            for (int g = 0; g < Isa::kGroups; ++g) {
                Isa::store(s.tile + (d + r) * kQueries + g * Isa::kLanes, sum[r][g]);
            }
        }
    }
}

// into (keys, columns) += rows (keys of the block, queries) times lanes [step of queries][column]
template <class P>
RLHF_TARGET void add_key_gradient(const typename P::Stored* rows, const typename P::Cell* lanes,
                                  const QueryBlock<P>& block, std::int64_t columns, float* into) {
    using Isa = typename P::Isa;
    constexpr int kQueries = AttentionShape<P>::kQueries;
    typename P::F sum[Isa::kRows][2];
    for (std::int64_t key = block.first_key; key < block.last_key; key += Isa::kRows, rows += Isa::kRows * kQueries) {
        for (std::int64_t d = 0; d < columns; d += 2 * Isa::kLanes) {
            tile<P, 2>(rows, kQueries, lanes + d, columns, (kQueries + P::kDepth - 1) / P::kDepth, sum);
            for (int r = 0; r < Isa::kRows; ++r) {
                float* const at = into + (key + r) * columns + d;
                for (int g = 0; g < 2; ++g) {
                    Isa::store(at + g * Isa::kLanes, Isa::load(at + g * Isa::kLanes) + sum[r][g]);
                }
            }
        }
    }
}

template <class P, class T>
RLHF_TARGET void write_keys(const float* sums, const AttentionShape<P>& shape, float scale, T* out,
                            std::int64_t stride) {
    using Isa = typename P::Isa;
    for (std::int64_t i = 0; i < shape.length; ++i) {
        for (std::int64_t d = 0; d < shape.head_dim; d += Isa::kLanes) {
            const auto x = Isa::load(sums + i * shape.columns() + d) * Isa::set1(scale);
            store_some<Isa>(out + i * stride + d, x, shape.head_dim - d);
        }
    }
}

template <class P, class T>
RLHF_TARGET void backward_block(const AttentionBackward& backward, const AttentionTask& task,
                                const BackwardScratch<P>& s, const AttentionShape<P>& shape, std::int64_t head,
                                std::int64_t q) {
    constexpr int kQueries = AttentionShape<P>::kQueries;
    const Attention& a = backward.attention;
    const QueryBlock<P> block(q, shape, a.window);
    const auto queries = head_rows<T>(a.q, task.first + q, head);
    const auto d_out = head_rows<T>(backward.d_out, task.first + q, head);
    float log_sum[kQueries], dots[kQueries];
    std::fill_n(log_sum, kQueries, 1e30f);  // no share for queries beyond the last
    std::fill_n(dots, kQueries, 0.0f);
    std::copy_n(backward.log_sum + head * a.tokens + task.first + q, block.count, log_sum);
    row_dots<P>(head_rows<T>(backward.out, task.first + q, head), d_out, block.count, a.head_dim, dots);
    pack_queries<P>(queries, block.count, a.head_dim, s.queries);
    pack_queries<P>(d_out, block.count, a.head_dim, s.d_out);
    zip_queries<P>(queries, block.count, a.head_dim, s.queries_zipped, shape.columns());
    zip_queries<P>(d_out, block.count, a.head_dim, s.d_out_zipped, shape.columns());
    differentiate<P>(s, block, shape, a.scale, log_sum, dots);
    query_gradient<P>(s, block, shape);
    T* const dq = static_cast<T*>(backward.dq) + ((task.first + q) * a.heads + head) * a.head_dim;
    write_queries<P>(s.tile, block.count, a.head_dim, dq, a.heads * a.head_dim, a.scale, s.row);
    add_key_gradient<P>(s.d_scores, s.queries_zipped, block, shape.columns(), s.dk);
    add_key_gradient<P>(s.shares, s.d_out_zipped, block, shape.columns(), s.dv);
}

template <class P, class T>
RLHF_TARGET void attention_backward(const AttentionBackward& backward, const AttentionTask& task) {
    const Attention& a = backward.attention;
    const AttentionShape<P> shape{task.last - task.first, a.head_dim};
    Scratch scratch(task.scratch);
    const auto s = BackwardScratch<P>::from(scratch, shape);
    const auto keys = head_rows<T>(a.k, task.first, task.kv_head), values = head_rows<T>(a.v, task.first, task.kv_head);
    copy_rows<P>(keys, shape.length, a.head_dim, s.keys, shape.keys(), shape.depth());
    copy_rows<P>(values, shape.length, a.head_dim, s.values, shape.keys(), shape.depth());
    transpose_rows<P>(keys, shape.length, a.head_dim, s.keys_by_column, shape.keys(), shape.columns());
    std::fill_n(s.dk, shape.keys() * shape.columns(), 0.0f);
    std::fill_n(s.dv, shape.keys() * shape.columns(), 0.0f);
    const std::int64_t group = a.heads / a.kv_heads;
    for (std::int64_t head = task.kv_head * group; head < (task.kv_head + 1) * group; ++head) {
        for (std::int64_t q = 0; q < shape.length; q += AttentionShape<P>::kQueries) {
            backward_block<P, T>(backward, task, s, shape, head, q);
        }
    }
    const std::int64_t at = (task.first * a.kv_heads + task.kv_head) * a.head_dim, stride = a.kv_heads * a.head_dim;
    write_keys<P>(s.dk, shape, a.scale, static_cast<T*>(backward.dk) + at, stride);
    write_keys<P>(s.dv, shape, 1.0f, static_cast<T*>(backward.dv) + at, stride);
}

}  // namespace
}  // namespace rlhf::layers
