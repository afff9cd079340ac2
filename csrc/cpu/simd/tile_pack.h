// Matrices as right operands of tile products.
#pragma once

#include <algorithm>

#include "../tile_kernels.h"
#include "isa_amx.h"

namespace rlhf {
namespace {

RLHF_INLINE __mmask32 first_lanes(std::int64_t count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0u : (1u << count) - 1;
}

// One stage of a transposition of 16 x 16 cells: blocks of `kBlock` cells change places between rows that far apart.
template <int kBlock>
RLHF_INLINE void exchange(__m512i (&rows)[16]) {
    alignas(64) std::int32_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
        const bool second = (i & kBlock) != 0;
        low[i] = second ? 16 + i - kBlock : i;
        high[i] = second ? 16 + i : i + kBlock;
    }
    const __m512i to_low = _mm512_load_si512(low), to_high = _mm512_load_si512(high);
    RLHF_UNROLL
    for (int r = 0; r < 16; ++r) {
        if ((r & kBlock) != 0) continue;
        const __m512i a = rows[r], b = rows[r + kBlock];
        rows[r] = _mm512_permutex2var_epi32(a, to_low, b);
        rows[r + kBlock] = _mm512_permutex2var_epi32(a, to_high, b);
    }
}

RLHF_INLINE void transpose(__m512i (&rows)[16]) {
    exchange<8>(rows);
    exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}

// 16 columns whose depth is contiguous, `stride` apart -> [pair][column]
RLHF_TARGET inline void pack_columns(const std::uint16_t* data, std::int64_t stride, std::int64_t columns,
                                     std::int64_t depth, std::uint16_t* tile) {
    __m512i cells[16];
    RLHF_UNROLL
    for (int c = 0; c < 16; ++c) {
        const __mmask32 present = c < columns ? first_lanes(depth) : 0;
        cells[c] = _mm512_maskz_loadu_epi16(present, data + c * stride);
    }
    transpose(cells);
    RLHF_UNROLL
    for (int pair = 0; pair < 16; ++pair) _mm512_storeu_si512(tile + pair * 32, cells[pair]);
}

RLHF_INLINE __m512i zip_rows(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// 32 rows of 16 columns, contiguous, `stride` apart -> [pair of rows][column]
RLHF_TARGET inline void pack_rows(const std::uint16_t* data, std::int64_t stride, std::int64_t columns,
                                  std::int64_t depth, std::uint16_t* tile) {
    if (columns >= kTile && depth >= kStep) {
        RLHF_UNROLL
        for (int pair = 0; pair < 16; ++pair, data += 2 * stride) {
            const auto* first = reinterpret_cast<const __m256i*>(data);
            const auto* second = reinterpret_cast<const __m256i*>(data + stride);
            _mm512_storeu_si512(tile + pair * 32, zip_rows(_mm256_loadu_si256(first), _mm256_loadu_si256(second)));
        }
        return;
    }
    const auto present = static_cast<__mmask16>(first_lanes(columns));
    for (int pair = 0; pair < 16; ++pair) {
        __m256i rows[2];
        for (int i = 0; i < 2; ++i) {
            const std::int64_t d = 2 * pair + i;
            rows[i] = d < depth ? _mm256_maskz_loadu_epi16(present, data + d * stride) : _mm256_setzero_si256();
        }
        _mm512_storeu_si512(tile + pair * 32, zip_rows(rows[0], rows[1]));
    }
}

RLHF_TARGET inline void pack_right(const RightMatrix& m, std::uint16_t* packed) {
    for (std::int64_t panel = 0; panel < m.columns; panel += kPanel) {
        const std::int64_t width = std::min(kPanel, round_up(m.columns - panel, kTile));
        for (std::int64_t d = 0; d < m.depth; d += kStep) {
            for (std::int64_t c = panel; c < panel + width; c += kTile, packed += kStep * kTile) {
                const std::uint16_t* from = m.data + d * m.depth_stride + c * m.column_stride;
                if (m.depth_stride == 1) {
                    pack_columns(from, m.column_stride, m.columns - c, m.depth - d, packed);
                } else {
                    pack_rows(from, m.depth_stride, m.columns - c, m.depth - d, packed);
                }
            }
        }
    }
}

}  // namespace
}  // namespace rlhf
