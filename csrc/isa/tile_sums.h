// Sums of up to 32 x 32 in four tiles: the inner loop of every product that takes bf16 in tiles of 16 rows.
#pragma once

#include <cstdint>

#include "isa/amx.h"

namespace rlhf {
namespace {

// Sums of R x G tiles are tiles 0 to 3; left operands come to 4 and 5, right ones to 6 and 7.
template <int R, int G>
RLHF_INLINE void zero_sums() {
    tile_zero<0>();
    if constexpr (G == 2) tile_zero<1>();
    if constexpr (R == 2) tile_zero<2>();
    if constexpr (R == 2 && G == 2) tile_zero<3>();
}

template <int R, int G>
RLHF_INLINE void load_sums(const float* from, std::int64_t stride) {
    const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(float));
    tile_load<0>(from, bytes);
    if constexpr (G == 2) tile_load<1>(from + 16, bytes);
    if constexpr (R == 2) tile_load<2>(from + 16 * stride, bytes);
    if constexpr (R == 2 && G == 2) tile_load<3>(from + 16 * stride + 16, bytes);
}

template <int R, int G>
RLHF_INLINE void store_sums(float* to, std::int64_t stride) {
    const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof(float));
    tile_store<0>(to, bytes);
    if constexpr (G == 2) tile_store<1>(to + 16, bytes);
    if constexpr (R == 2) tile_store<2>(to + 16 * stride, bytes);
    if constexpr (R == 2 && G == 2) tile_store<3>(to + 16 * stride + 16, bytes);
}

// sums += rows (16 R of them, `row_bytes` apart) * lanes [pair of the depth][16 G], pairs `pair_bytes` apart; a step is
// 32 elements of a row
template <int R, int G>
RLHF_INLINE void multiply_tiles(const void* rows, std::int64_t row_bytes, const void* lanes, std::int64_t pair_bytes,
                                std::int64_t steps) {
    const char* left = static_cast<const char*>(rows);
    const char* right = static_cast<const char*>(lanes);
    for (std::int64_t step = 0; step < steps; ++step, left += Tiles::kRowBytes, right += 16 * pair_bytes) {
        tile_load<6>(right, pair_bytes);
        tile_load<4>(left, row_bytes);
        tile_multiply<0, 4, 6>();
        if constexpr (G == 2) {
            tile_load<7>(right + Tiles::kRowBytes, pair_bytes);
            tile_multiply<1, 4, 7>();
        }
        if constexpr (R == 2) {
            tile_load<5>(left + 16 * row_bytes, row_bytes);
            tile_multiply<2, 5, 6>();
        }
        if constexpr (R == 2 && G == 2) tile_multiply<3, 5, 7>();
    }
}

}  // namespace
}  // namespace rlhf
