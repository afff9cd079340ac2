// Sums of up to 32 x 32 in four tiles: the inner loop of the products that take bf16 in tiles.
#pragma once

#include <cstdint>

#include "isa_amx.h"
#include "product.h"
#include "weight_block.h"

namespace rlhf {
namespace {

// Panels of two groups: with 32 vocabulary rows they fill four tiles of sums, and four are left for the operands.
struct TilePanelProduct : TileProduct {
    struct Isa : Avx512 {
        static constexpr int kGroups = 2, kRows = 32;
    };
};

template <>
struct Registers<TilePanelProduct> : Tiles {};

template <>
constexpr int kStepsAtOnce<TilePanelProduct> = 16;

// The inner products of dz W are so long: dh comes and goes once for each block.
template <>
constexpr std::int64_t kBlock<TilePanelProduct> = 256;

constexpr std::int64_t kTileDepth = 32;                       // elements of an inner product that a tile holds
constexpr std::int64_t kTileBytes = Tiles::kRows * Tiles::kRowBytes;

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

// sums += rows (16 R of them, 32 elements a step) * lanes [step][pair][16 G lanes]
template <int R, int G>
RLHF_INLINE void multiply_tiles(const char* rows, std::int64_t row_bytes, const TileProduct::Cell* lanes,
                                std::int64_t steps) {
    for (std::int64_t step = 0; step < steps; ++step, rows += Tiles::kRowBytes, lanes += G * 256) {
        tile_load<6>(lanes, G * Tiles::kRowBytes);
        tile_load<4>(rows, row_bytes);
        tile_multiply<0, 4, 6>();
        if constexpr (G == 2) {
            tile_load<7>(lanes + 16, G * Tiles::kRowBytes);
            tile_multiply<1, 4, 7>();
        }
        if constexpr (R == 2) {
            tile_load<5>(rows + 16 * row_bytes, row_bytes);
            tile_multiply<2, 5, 6>();
        }
        if constexpr (R == 2 && G == 2) tile_multiply<3, 5, 7>();
    }
}

}  // namespace
}  // namespace rlhf
