// What forward and backward of attention in tiles share: blocks of 32 queries against blocks of 32 keys, bf16 products
// with float sums. Rows of a head are padded with 0 to `depth`, a multiple of 32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/amx.h"
#include "layers/attention.h"

namespace rlhf::layers {
namespace {

// Rows of bf16 as tiles take them: left operands are dense rows, right operands cells [pair of the depth][lane]. Every
// operand is padded with 0 to whole blocks.

constexpr std::int64_t kBlock = 32;  // rows and lanes of a product; elements in a row of a tile
constexpr std::int64_t kLanes = Avx512::kLanes;

// Row i is 0 from `count` on, column d from `width` on.
struct PaddedRows {
    TokenRows<std::uint16_t> rows;
    std::int64_t count, width;

    // The columns d to d + 31 that there are
    __mmask32 columns(std::int64_t d) const { return lanes_below(width - d); }

    // Columns d to d + 31 of row i
    RLHF_INLINE __m512i part(std::int64_t i, std::int64_t d, __mmask32 there) const {
        return i < count ? _mm512_maskz_loadu_epi16(there, rows.row(i) + d) : _mm512_setzero_si512();
    }
    // Rows i and i + 1 in the halves of a cell: columns d to d + 15, and the 16 after them
    RLHF_INLINE void pairs(std::int64_t i, std::int64_t d, __mmask32 there, __m512i& low, __m512i& high) const {
        const __m512i even = part(i, d, there), odd = part(i + 1, d, there);
        low = zip(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd));
        high = zip(_mm512_extracti64x4_epi64(even, 1), _mm512_extracti64x4_epi64(odd, 1));
    }
};

// out[i * stride] = transposed x[i], all of 64 bytes
template <class Out>
RLHF_INLINE void store_transposed(__m512i (&x)[16], Out* out, std::int64_t stride) {
    transpose(x);
    RLHF_UNROLL
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * stride, x[i]);
}

// A left operand: out (rows, depth)
RLHF_TARGET inline void copy_rows(const PaddedRows& x, std::int64_t rows, std::int64_t depth, std::uint16_t* out) {
    for (std::int64_t d = 0; d < depth; d += kBlock) {
        const __mmask32 there = x.columns(d);
        for (std::int64_t i = 0; i < rows; ++i) _mm512_storeu_si512(out + i * depth + d, x.part(i, d, there));
    }
}

// A left operand whose depth are the rows: out (depth, rows) of row stride `stride`
RLHF_TARGET inline void transpose_rows(const PaddedRows& x, std::int64_t rows, std::int64_t depth, std::uint16_t* out,
                                       std::int64_t stride) {
    for (std::int64_t d = 0; d < depth; d += kBlock) {
        const __mmask32 there = x.columns(d);
        for (std::int64_t i = 0; i < rows; i += kBlock) {
            __m512i low[16], high[16];
            for (int pair = 0; pair < 16; ++pair) x.pairs(i + 2 * pair, d, there, low[pair], high[pair]);
            store_transposed(low, out + d * stride + i, stride);
            store_transposed(high, out + (d + 16) * stride + i, stride);
        }
    }
}

// A right operand whose lanes are the 32 rows from `first` on: out [depth / 2][32]
RLHF_TARGET inline void pack_rows(const PaddedRows& x, std::int64_t first, std::int64_t depth, std::uint32_t* out) {
    for (std::int64_t d = 0; d < depth; d += kBlock, out += kBlock / 2 * kBlock) {
        const __mmask32 there = x.columns(d);
        for (std::int64_t lane = 0; lane < kBlock; lane += kLanes) {
            __m512i part[16];
            for (int i = 0; i < 16; ++i) part[i] = x.part(first + lane + i, d, there);
            store_transposed(part, out + lane, kBlock);
        }
    }
}

// A right operand whose depth are the rows: out [rows / 2][depth]
RLHF_TARGET inline void zip_rows(const PaddedRows& x, std::int64_t rows, std::int64_t depth, std::uint32_t* out) {
    for (std::int64_t d = 0; d < depth; d += kBlock) {
        const __mmask32 there = x.columns(d);
        for (std::int64_t i = 0; i < rows; i += 2) {
            __m512i low, high;
            x.pairs(i, d, there, low, high);
            _mm512_storeu_si512(out + i / 2 * depth + d, low);
            _mm512_storeu_si512(out + i / 2 * depth + d + kLanes, high);
        }
    }
}

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// The 32 queries of a sequence from `first` on, `count` of which there are, and the keys that some of them see:
// [first_key, last_key), multiples of 32
struct TileQueries {
    std::int64_t first, count, first_key, last_key, window;

    TileQueries(std::int64_t first_query, std::int64_t length, std::int64_t window_)
        : first(first_query),
          count(std::min(kBlock, length - first_query)),
          first_key(window_ > 0 ? std::max<std::int64_t>(0, first_query - window_ + 1) / kBlock * kBlock : 0),
          last_key(first_query + kBlock),
          window(window_) {}

    // Whether some of the 32 keys from `key` on is hidden from some query
    bool cuts(std::int64_t key) const {
        return key + kBlock - 1 > first || (window > 0 && key <= first + kBlock - 1 - window);
    }
    std::int64_t first_seen(std::int64_t query) const {
        return window > 0 ? std::max<std::int64_t>(0, query - window + 1) : 0;
    }
    // Of the 16 queries from `query` on those that see `key`
    __mmask16 seeing(std::int64_t key, std::int64_t query) const {
        const std::uint32_t ended = window > 0 ? ~lanes_below(key + window - query) : 0;
        return static_cast<__mmask16>(~lanes_below(key - query) & ~ended);
    }
};

// c (32, 32): = or += a (32, 32 steps) times b [16 steps][32]; strides in elements
template <bool kAdd>
RLHF_TARGET inline void multiply_block(const std::uint16_t* a, std::int64_t a_stride, const std::uint32_t* b,
                                       std::int64_t b_stride, std::int64_t steps, float* c, std::int64_t c_stride) {
    if constexpr (kAdd) {
        load_sums<2, 2>(c, c_stride);
    } else {
        zero_sums<2, 2>();
    }
    multiply_tiles<2, 2>(a, a_stride * 2, b, b_stride * 4, steps);
    store_sums<2, 2>(c, c_stride);
}

// 2^x, exactly 1 at 0 and 0 for -inf; relative error 3e-6, a thousandth of what rounding to bf16 takes.
// 2^f = 1 + f p(f) for |f| <= 1/2, p fitted for the least error of 2^f.
RLHF_INLINE __m512 power_of_2(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // x less a whole number
    __m512 p = Avx512::fma(Avx512::set1(9.58285e-3f), f, Avx512::set1(5.590643e-2f));
    p = Avx512::fma(p, f, Avx512::set1(2.4024099e-1f));
    p = Avx512::fma(p, f, Avx512::set1(6.9312419e-1f));
    return _mm512_scalef_ps(Avx512::fma(p, f, Avx512::set1(1.0f)), x - f);
}

// 32 floats to bf16, the first `count` of them if there are fewer
RLHF_INLINE void narrow_some(std::uint16_t* out, __m512 low, __m512 high, std::int64_t count) {
    _mm512_mask_storeu_epi16(out, lanes_below(count), (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

}  // namespace
}  // namespace rlhf::layers
