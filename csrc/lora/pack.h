// Matrices as right operands of tile products.
#pragma once

#include <algorithm>

#include "lora/kernels.h"
#include "isa/cells.h"
#include "isa/amx.h"

namespace rlhf {
namespace {

// 16 columns whose depth is contiguous, `stride` apart -> [pair][column], pairs `pair_stride` elements apart
RLHF_TARGET inline void pack_columns(const std::uint16_t* data, std::int64_t stride, std::int64_t columns,
                                     std::int64_t depth, std::uint16_t* tile, std::int64_t pair_stride) {
    __m512i cells[16];
    RLHF_UNROLL
    for (int c = 0; c < 16; ++c) {
        const __mmask32 present = c < columns ? lanes_below(depth) : 0;
        cells[c] = _mm512_maskz_loadu_epi16(present, data + c * stride);
    }
    transpose(cells);
    RLHF_UNROLL
    for (int pair = 0; pair < 16; ++pair) _mm512_storeu_si512(tile + pair * pair_stride, cells[pair]);
}

// 32 rows of 16 columns, contiguous, `stride` apart -> [pair of rows][column], pairs `pair_stride` elements apart
RLHF_TARGET inline void pack_rows(const std::uint16_t* data, std::int64_t stride, std::int64_t columns,
                                  std::int64_t depth, std::uint16_t* tile, std::int64_t pair_stride) {
    if (columns >= kTile && depth >= kStep) {
        RLHF_UNROLL
        for (int pair = 0; pair < 16; ++pair, data += 2 * stride) {
            const auto* first = reinterpret_cast<const __m256i*>(data);
            const auto* second = reinterpret_cast<const __m256i*>(data + stride);
            _mm512_storeu_si512(tile + pair * pair_stride, zip(_mm256_loadu_si256(first), _mm256_loadu_si256(second)));
        }
        return;
    }
    const auto present = static_cast<__mmask16>(lanes_below(columns));
    for (int pair = 0; pair < 16; ++pair) {
        __m256i rows[2];
        for (int i = 0; i < 2; ++i) {
            const std::int64_t d = 2 * pair + i;
            rows[i] = d < depth ? _mm256_maskz_loadu_epi16(present, data + d * stride) : _mm256_setzero_si256();
        }
        _mm512_storeu_si512(tile + pair * pair_stride, zip(rows[0], rows[1]));
    }
}

RLHF_TARGET inline void pack_right(const RightMatrix& m, std::uint16_t* packed) {
    for (std::int64_t panel = 0; panel < m.columns; panel += kPanel) {
        const std::int64_t width = std::min(kPanel, round_up(m.columns - panel, kTile)), pair_stride = 2 * width;
        for (std::int64_t d = 0; d < m.depth; d += kStep, packed += kStep * width) {
            for (std::int64_t c = 0; c < width; c += kTile) {
                const std::int64_t column = panel + c;
                const std::uint16_t* from = m.data + d * m.depth_stride + column * m.column_stride;
                if (m.depth_stride == 1) {
                    pack_columns(from, m.column_stride, m.columns - column, m.depth - d, packed + 2 * c, pair_stride);
                } else {
                    pack_rows(from, m.depth_stride, m.columns - column, m.depth - d, packed + 2 * c, pair_stride);
                }
            }
        }
    }
}

}  // namespace
}  // namespace rlhf
