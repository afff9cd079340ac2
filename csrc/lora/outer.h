// Products whose sum runs over the rows of two matrices, as the gradients of an adapter's factors are.
#pragma once

#include <algorithm>

#include "lora/product.h"

namespace rlhf::lora {
namespace {

RLHF_TARGET inline void transpose_ranks(const std::uint16_t* left, std::int64_t stride, std::int64_t ranks,
                                        const RowRange& range, std::uint16_t* packed) {
    for (std::int64_t row = range.first; row < range.last; row += kStep) {
        for (std::int64_t rank = 0; rank < ranks; rank += kTile, packed += kStep * kTile) {
            pack_rows(left + row * stride + rank, stride, ranks - rank, range.last - row, packed, 2 * kTile);
            __m512i cells[16];  // [pair of rows][rank]
            RLHF_UNROLL
            for (int i = 0; i < 16; ++i) cells[i] = _mm512_loadu_si512(packed + i * 32);
            transpose(cells);
            RLHF_UNROLL
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(packed + i * 32, cells[i]);
        }
    }
}

constexpr int kOuterTiles = 4;  // of columns, whose sums stay in tiles over all rows
constexpr std::int64_t kOuterColumns = kOuterTiles * kTile;

// Which of 32 columns a column of two tiles is: the halves of 128-bit lanes are paired, which takes one instruction.
RLHF_INLINE std::int64_t paired_column(std::int64_t c) { return c % kTile / 4 * 8 + c / kTile * 4 + c % 4; }

// 32 rows of kOuterColumns columns, those that are there -> cells [tile][pair of rows][paired column]
RLHF_TARGET inline void pack_outer(const OuterTask& task, std::int64_t row, std::int64_t rows, std::int64_t column,
                                   std::uint16_t* cells) {
    constexpr std::int64_t tile = kStep * kTile;
    for (std::int64_t c = column; c < std::min(column + kOuterColumns, task.last_column); c += 32, cells += 2 * tile) {
        const __mmask32 present = lanes_below(task.last_column - c);
        const std::uint16_t* from = task.right + row * task.right_stride + c;
        for (std::int64_t pair = 0; pair < 16; ++pair, from += 2 * task.right_stride) {
            const std::int64_t left = rows - 2 * pair;
            const __m512i first = _mm512_maskz_loadu_epi16(left > 0 ? present : 0, from);
            const __m512i second = _mm512_maskz_loadu_epi16(left > 1 ? present : 0, from + task.right_stride);
            _mm512_store_si512(cells + pair * 32, _mm512_unpacklo_epi16(first, second));
            _mm512_store_si512(cells + tile + pair * 32, _mm512_unpackhi_epi16(first, second));
        }
    }
}

RLHF_INLINE void add_outer(const std::uint16_t* left, const std::uint16_t* cells) {
    constexpr std::int64_t tile = kStep * kTile;
    tile_load<4>(left, Tiles::kRowBytes);
    tile_load<5>(cells, Tiles::kRowBytes);
    tile_load<6>(cells + tile, Tiles::kRowBytes);
    tile_multiply<0, 4, 5>();
    tile_multiply<1, 4, 6>();
    tile_load<5>(cells + 2 * tile, Tiles::kRowBytes);
    tile_load<6>(cells + 3 * tile, Tiles::kRowBytes);
    tile_multiply<2, 4, 5>();
    tile_multiply<3, 4, 6>();
}

RLHF_TARGET inline void write_outer(const OuterTask& task, const float (*sums)[kTile * kTile], std::int64_t rank,
                                    std::int64_t column) {
    const std::int64_t ranks = std::min(kTile, task.ranks - rank);
    for (std::int64_t i = 0; i < kOuterColumns; ++i) {
        const std::int64_t at = column + i / 32 * 32 + paired_column(i % 32);
        if (at >= task.last_column) continue;
        float* out = task.out + rank * task.rank_stride + at * task.column_stride;
        const float* of_column = sums[i / kTile] + i % kTile;
        for (std::int64_t r = 0; r < ranks; ++r) out[r * task.rank_stride] = task.scale * of_column[r * kTile];
    }
}

// All rows for one tile of ranks and kOuterTiles tiles of columns; the next rows are packed while tiles multiply
RLHF_TARGET inline void outer_sums(const OuterTask& task, std::int64_t rank, std::int64_t column) {
    alignas(64) std::uint16_t cells[2][kOuterTiles * kStep * kTile] = {};
    alignas(64) float sums[kOuterTiles][kTile * kTile];
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    const std::uint16_t* left = task.left + rank * kStep;
    const std::int64_t left_block = kStep * round_up(task.ranks, kTile);
    int turn = 0;
    bool packed = false;
    for (const RowRange* range = task.ranges; range != task.ranges + task.range_count; ++range) {
        for (std::int64_t row = range->first; row < range->last; row += kStep) {
            pack_outer(task, row, std::min(kStep, range->last - row), column, cells[turn]);
            if (packed) add_outer(left, cells[1 - turn]), left += left_block;
            packed = true, turn = 1 - turn;
        }
    }
    if (packed) add_outer(left, cells[1 - turn]);
    tile_store<0>(sums[0], Tiles::kRowBytes);
    tile_store<1>(sums[1], Tiles::kRowBytes);
    tile_store<2>(sums[2], Tiles::kRowBytes);
    tile_store<3>(sums[3], Tiles::kRowBytes);
    write_outer(task, sums, rank, column);
}

RLHF_TARGET inline void outer_product(const OuterTask& task) {
    const Tiles tiles;
    for (std::int64_t rank = 0; rank < task.ranks; rank += kTile) {
        for (std::int64_t column = task.first_column; column < task.last_column; column += kOuterColumns) {
            outer_sums(task, rank, column);
        }
    }
}

}  // namespace
}  // namespace rlhf::lora
