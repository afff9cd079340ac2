// Rows of bf16 as tiles take them: left operands are dense rows, right operands cells [pair of the depth][lane]. Every
// operand is padded with 0 to whole blocks.
#pragma once

#include <cstdint>

#include "isa/cells.h"
#include "layers/head_rows.h"
#include "isa/amx.h"
#include "isa/avx512bf16_pairs.h"

namespace rlhf {
namespace {

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

}  // namespace
}  // namespace rlhf
