// What forward and backward of attention share. Scores are kept transposed, keys in rows and a block of queries in
// the lanes, so that every reduction over keys is a vector operation. Rows are padded with 0: products have no rest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common.h"
#include "isa/product.h"
#include "isa/vectors.h"
#include "layers/layers.h"

namespace rlhf::layers {
namespace {

// Hands out parts of a scratch memory, each on a cache line. Without memory it only counts.
class Scratch {
   public:
    explicit Scratch(char* memory) : memory_(memory) {}
    template <class T>
    T* take(std::int64_t count) {
        char* const part = memory_ + used_;
        used_ += round_up(count * static_cast<std::int64_t>(sizeof(T)), 64);
        return reinterpret_cast<T*>(part);
    }
    std::int64_t used() const { return used_; }

   private:
    char* memory_;
    std::int64_t used_ = 0;
};

template <class T>
struct TokenRows {
    const T* data;
    std::int64_t stride;
    const T* row(std::int64_t i) const { return data + i * stride; }
};

template <class T>
inline TokenRows<T> head_rows(const Heads& heads, std::int64_t first_token, std::int64_t head) {
    return {static_cast<const T*>(heads.data) + first_token * heads.token_stride + head * heads.head_stride,
            heads.token_stride};
}

template <class P>
struct AttentionShape {
    static constexpr int kQueries = P::Isa::kLanes * P::Isa::kGroups;  // in a block
    static constexpr int kKeys = P::Isa::kRows;                        // of a product; even where kDepth is 2
    static constexpr int kColumns = 2 * P::Isa::kLanes;                // of the head, side by side in a product
    std::int64_t length, head_dim;

    std::int64_t keys() const { return round_up(length, std::max(kKeys, P::kDepth)); }
    std::int64_t depth() const { return round_up(head_dim, P::kDepth); }
    std::int64_t columns() const { return round_up(head_dim, std::max(kColumns, kKeys)); }
};

template <class P, class T>
inline typename P::Stored stored(T x) {
    if constexpr (std::is_same_v<typename P::Stored, T>) {
        return x;
    } else {
        return to_float(x);
    }
}

// Rows 0..count -> out (padded, depth), 0 beyond
template <class P, class T>
RLHF_TARGET void copy_rows(TokenRows<T> x, std::int64_t count, std::int64_t width, typename P::Stored* out,
                           std::int64_t padded, std::int64_t depth) {
    for (std::int64_t i = 0; i < padded; ++i, out += depth) {
        const std::int64_t filled = i < count ? width : 0;
        for (std::int64_t d = 0; d < filled; ++d) out[d] = stored<P>(x.row(i)[d]);
        for (std::int64_t d = filled; d < depth; ++d) out[d] = 0;
    }
}

// Rows 0..count -> out (columns, padded), 0 beyond
template <class P, class T>
RLHF_TARGET void transpose_rows(TokenRows<T> x, std::int64_t count, std::int64_t width, typename P::Stored* out,
                                std::int64_t padded, std::int64_t columns) {
    std::fill_n(out, padded * columns, typename P::Stored(0));
    for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t d = 0; d < width; ++d) out[d * padded + i] = stored<P>(x.row(i)[d]);
    }
}

// Rows 0..count in the lanes -> cells [step of width][query], 0 beyond
template <class P, class T>
RLHF_TARGET void pack_queries(TokenRows<T> x, std::int64_t count, std::int64_t width, typename P::Cell* out) {
    constexpr std::int64_t kQueries = AttentionShape<P>::kQueries;
    const std::int64_t steps = (width + P::kDepth - 1) / P::kDepth;
    if (count < kQueries) std::fill_n(out, steps * kQueries, typename P::Cell(0));
    for (std::int64_t i = 0; i < count; ++i) {
        const T* const row = x.row(i);
        const std::int64_t whole = width / P::kDepth;
        for (std::int64_t s = 0; s < whole; ++s) out[s * kQueries + i] = P::cell(row + s * P::kDepth, P::kDepth);
        if (whole < steps) out[whole * kQueries + i] = P::cell(row + whole * P::kDepth, 1);
    }
}

// Rows 0..count in the depth -> cells [step of queries][column], 0 beyond
template <class P, class T>
RLHF_TARGET void zip_queries(TokenRows<T> x, std::int64_t count, std::int64_t width, typename P::Cell* out,
                             std::int64_t columns) {
    for (std::int64_t i = 0; i < AttentionShape<P>::kQueries; i += P::kDepth, out += columns) {
        const std::int64_t filled = i < count ? width : 0;
        const T *const even = x.row(std::min(i, count - 1)), *const odd = x.row(std::min(i + 1, count - 1));
        if constexpr (P::kDepth == 2) {
            const typename P::Cell both = i + 1 < count ? 0xffffffff : 0xffff;
            for (std::int64_t d = 0; d < filled; ++d) {
                out[d] = (even[d] | static_cast<typename P::Cell>(odd[d]) << 16) & both;
            }
        } else {
            for (std::int64_t d = 0; d < filled; ++d) out[d] = to_float(even[d]);
        }
        for (std::int64_t d = filled; d < columns; ++d) out[d] = 0;
    }
}

// sum[r][g] += rows (kKeys of them, `stride` elements apart) times lanes [step][stride of lanes]
template <class P, int G>
RLHF_INLINE void tile(const typename P::Stored* rows, std::int64_t stride, const typename P::Cell* lanes,
                      std::int64_t lane_stride, std::int64_t steps, typename P::F (&sum)[P::Isa::kRows][G]) {
    constexpr std::int64_t kSize = sizeof(typename P::Stored);
    RLHF_UNROLL
    for (int r = 0; r < P::Isa::kRows; ++r) {
        RLHF_UNROLL
        for (int g = 0; g < G; ++g) sum[r][g] = P::Isa::set1(0.0f);
    }
    multiply<P, P::Isa::kRows, G>(reinterpret_cast<const char*>(rows), stride * kSize, P::kDepth * kSize, lanes,
                                  lane_stride, steps, sum);
}

// The queries of a block that starts at `first` and the keys that they see, [first_key, last_key), multiples of kKeys
template <class P>
struct QueryBlock {
    std::int64_t first, count, first_key, last_key, window;

    QueryBlock(std::int64_t first_query, const AttentionShape<P>& shape, std::int64_t window_)
        : first(first_query),
          count(std::min<std::int64_t>(AttentionShape<P>::kQueries, shape.length - first_query)),
          first_key(window_ > 0 ? std::max<std::int64_t>(0, first_query - window_ + 1) / kUnit * kUnit : 0),
          last_key(round_up(first_query + count, kUnit)),
          window(window_) {}

    // Whether some key of the kKeys from `key` on is hidden from some query of the block
    bool cuts(std::int64_t key) const {
        const std::int64_t last_query = first + AttentionShape<P>::kQueries - 1;
        return key + AttentionShape<P>::kKeys - 1 > first || (window > 0 && key <= last_query - window);
    }

    // 0 for the queries of group g that see `key`, -1e30 or less for the others
    RLHF_INLINE typename P::F penalty(std::int64_t key, int g) const {
        using Isa = typename P::Isa;
        float lanes[Isa::kLanes];
        for (int i = 0; i < Isa::kLanes; ++i) {
            lanes[i] = static_cast<float>(first + g * Isa::kLanes + i - key);  // how far the key is behind the query
        }
        const auto behind = Isa::load(lanes), zero = Isa::set1(0.0f);
        auto hidden = Isa::max(zero, zero - behind);
        if (window > 0) hidden = hidden + Isa::max(zero, behind - Isa::set1(static_cast<float>(window - 1)));
        return hidden * Isa::set1(-1e30f);
    }

   private:
    static constexpr std::int64_t kUnit = std::max(AttentionShape<P>::kKeys, P::kDepth);
};

// tile (columns, queries) -> rows of `out`, times `scale`
template <class P, class T>
RLHF_TARGET void write_queries(const float* tile, std::int64_t count, std::int64_t width, T* out,
                               std::int64_t out_stride, float scale, float* row) {
    using Isa = typename P::Isa;
    for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t d = 0; d < width; ++d) row[d] = tile[d * AttentionShape<P>::kQueries + i];
        for (std::int64_t d = 0; d < width; d += Isa::kLanes) {
            store_some<Isa>(out + i * out_stride + d, Isa::load(row + d) * Isa::set1(scale), width - d);
        }
    }
}

}  // namespace
}  // namespace rlhf::layers
