// How log-probs take bf16 in tiles: the shape of a panel and of a block.
#pragma once

#include <cstdint>

#include "isa/amx.h"
#include "isa/product.h"
#include "isa/tile_sums.h"
#include "logprobs/weight_block.h"

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

}  // namespace
}  // namespace rlhf
