// Scores of attention in tile registers: 16 keys, as they lie in the cache, meet the queries of up to 16 heads.
#pragma once

#include <cstdint>

#include "isa/amx.h"
#include "decode/attention.h"
#include "decode/pair_decode.h"

namespace rlhf {
namespace {

// S: scores (keys, 16 heads); K: keys. Tile 4: queries.
template <int S, int K>
RLHF_INLINE void score_tile(const std::uint16_t* keys, std::int64_t head_dim, const std::uint32_t* queries,
                            float* scores) {
    constexpr std::int64_t kDepth = Tiles::kRowBytes / sizeof *keys;
    tile_zero<S>();
    for (std::int64_t d = 0; d < head_dim; d += kDepth) {
        tile_load<4>(queries + d / PairDecode::kDepth * PairDecode::Isa::kLanes, Tiles::kRowBytes);
        tile_load<K>(keys + d, head_dim * static_cast<std::int64_t>(sizeof *keys));
        tile_multiply<S, K, 4>();
    }
    tile_store<S>(scores, Tiles::kRowBytes);
}

struct TileScores {
    // Heads whose elements fill no tile are left to vectors.
    RLHF_TARGET static void run(const std::uint16_t* keys, std::int64_t head_dim, const std::uint32_t* queries,
                                std::int64_t positions, float* scores, Prefetch& prefetch) {
        if (head_dim * sizeof *keys % Tiles::kRowBytes != 0) {
            return VectorScores<PairDecode>::run(keys, head_dim, queries, positions, scores, prefetch);
        }
        Tiles tiles;
        const std::int64_t left = positions % Tiles::kRows, whole = positions - left;
        for (const int tile : {1, 3}) tiles.set(tile, left > 0 ? static_cast<int>(left) : 1, Tiles::kRowBytes);
        tiles.load();
        for (std::int64_t p = 0; p < whole; p += Tiles::kRows) {
            step_by(Tiles::kRows, prefetch);
            score_tile<0, 2>(keys + p * head_dim, head_dim, queries, scores + p * PairDecode::Isa::kLanes);
        }
        if (left == 0) return;
        score_tile<1, 3>(keys + whole * head_dim, head_dim, queries, scores + whole * PairDecode::Isa::kLanes);
    }
};

}  // namespace
}  // namespace rlhf
