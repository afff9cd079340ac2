// What forward and backward of attention in tiles share: blocks of 32 queries against blocks of 32 keys, bf16 products
// with float sums. Rows of a head are padded with 0 to `depth`, a multiple of 32.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/math.h"
#include "layers/tile_operands.h"
#include "isa/tile_sums.h"

namespace rlhf {
namespace {

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
}  // namespace rlhf
