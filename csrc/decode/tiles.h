// A decode step of bf16 in tile registers: its products and the scores of its attention.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "decode/attention.h"
#include "decode/product.h"
#include "isa/amx.h"

namespace rlhf::decode {
namespace {

using TilePairs = PairDecode<PairProduct>;

// As pack_block, but the pairs of eight outputs are gathered at once. Blocks that are not whole, of bf16 and of an even
// number of inputs are left to it.
RLHF_TARGET inline void pack_pairs(const WeightRow* rows, std::int64_t count, std::int64_t inputs, void* block) {
    constexpr std::int64_t kOutputs = kBlockOutputs<TilePairs>, kGathered = 8;
    bool whole = count == kOutputs && inputs % TilePairs::kDepth == 0;
    for (std::int64_t n = 0; n < count; ++n) whole = whole && rows[n].element == Element::kBFloat16;
    if (!whole) return pack_block<TilePairs>(rows, count, inputs, block);
    const void* begins[kOutputs];
    for (std::int64_t n = 0; n < kOutputs; ++n) begins[n] = rows[n].data;
    auto* cells = static_cast<TilePairs::Cell*>(block);
    for (std::int64_t k = 0; k < inputs; k += TilePairs::kDepth) {
        const auto offset = _mm512_set1_epi64(k * static_cast<std::int64_t>(sizeof(TilePairs::Stored)));
        for (std::int64_t n = 0; n < kOutputs; n += kGathered, cells += kGathered) {
            const __m512i addresses = _mm512_add_epi64(_mm512_loadu_si512(begins + n), offset);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(cells), _mm512_i64gather_epi32(addresses, nullptr, 1));
        }
    }
}

// The product of few rows and packed weights in tile registers: 16 rows meet 32 inputs of 16 outputs at once. A block
// is as product.h packs it, [step of 2 inputs][32 outputs], with steps of zeros behind that complete the last tile.

constexpr std::int64_t kTileInputs = 32, kTilePairs = 16;
constexpr std::int64_t kPassRows = 2 * Tiles::kRows;  // rows that meet a weight while it is in a register
constexpr std::int64_t kPairRowBytes = kBlockOutputs<TilePairs> * sizeof(TilePairs::Cell);
static_assert(kBlockOutputs<TilePairs> == 32, "a block is two tiles wide");

inline std::int64_t tile_block_bytes(std::int64_t inputs) {
    return (inputs + kTileInputs - 1) / kTileInputs * kTilePairs * kPairRowBytes;
}

inline void pack_tile_block(const WeightRow* rows, std::int64_t count, std::int64_t inputs, void* block) {
    const std::int64_t bytes = block_bytes<TilePairs>(inputs);
    std::memset(static_cast<char*>(block) + bytes, 0, static_cast<std::size_t>(tile_block_bytes(inputs) - bytes));
    pack_pairs(rows, count, inputs, block);
}

// The left operand of a pass: one or two tiles of rows, and the inputs that fill no tile, completed by zeros.
class PassRows {
   public:
    PassRows(const std::uint16_t* x, std::int64_t stride, std::int64_t rows, std::int64_t inputs)
        : x(x), stride(stride), upper((rows + 1) / 2), lower(rows / 2), steps(inputs / kTileInputs),
          left(inputs % kTileInputs) {
        if (rows <= Tiles::kRows) upper = rows, lower = 0;
        if (left == 0) return;
        std::memset(tail, 0, sizeof tail);
        for (std::int64_t r = 0; r < rows; ++r) {
            std::memcpy(tail[r], x + r * stride + steps * kTileInputs, static_cast<std::size_t>(left) * sizeof *x);
        }
    }

    const std::uint16_t* x;
    std::int64_t stride, upper, lower;  // elements between rows; rows of the two tiles
    std::int64_t steps, left;           // whole tiles of inputs, and inputs behind them
    alignas(64) std::uint16_t tail[kPassRows][kTileInputs];
};

// Tiles 0-3 are the sums [rows][outputs], 4 and 5 rows of x, 6 and 7 weights.
inline void shape_tiles(Tiles& tiles, const PassRows& rows) {
    for (const int tile : {0, 1, 4}) tiles.set(tile, static_cast<int>(rows.upper), Tiles::kRowBytes);
    for (const int tile : {2, 3, 5}) {
        tiles.set(tile, static_cast<int>(std::max<std::int64_t>(rows.lower, 1)), Tiles::kRowBytes);
    }
    tiles.load();
}

template <bool Both>
RLHF_INLINE void tile_step(const std::uint16_t* x, std::int64_t stride, std::int64_t upper, const char* weights) {
    const std::int64_t bytes = stride * static_cast<std::int64_t>(sizeof *x);
    tile_load<6>(weights, kPairRowBytes);
    tile_load<7>(weights + Tiles::kRowBytes, kPairRowBytes);
    tile_load<4>(x, bytes);
    tile_multiply<0, 4, 6>();
    tile_multiply<1, 4, 7>();
    if constexpr (Both) {
        tile_load<5>(x + upper * stride, bytes);
        tile_multiply<2, 5, 6>();
        tile_multiply<3, 5, 7>();
    }
}

template <bool Both>
RLHF_TARGET void tile_pass(const PassRows& rows, const char* block, const float* bias, float* y, std::int64_t y_stride,
                           Prefetch& prefetch) {
    tile_load<0>(bias, 0);  // the same for every row
    tile_load<1>(bias + Tiles::kRows, 0);
    if constexpr (Both) {
        tile_load<2>(bias, 0);
        tile_load<3>(bias + Tiles::kRows, 0);
    }
    for (std::int64_t step = 0; step < rows.steps; ++step, block += kTilePairs * kPairRowBytes) {
        prefetch.step();
        tile_step<Both>(rows.x + step * kTileInputs, rows.stride, rows.upper, block);
    }
    if (rows.left > 0) tile_step<Both>(rows.tail[0], kTileInputs, rows.upper, block);
    const std::int64_t bytes = y_stride * static_cast<std::int64_t>(sizeof *y);
    tile_store<0>(y, bytes);
    tile_store<1>(y + Tiles::kRows, bytes);
    if constexpr (Both) {
        tile_store<2>(y + rows.upper * y_stride, bytes);
        tile_store<3>(y + rows.upper * y_stride + Tiles::kRows, bytes);
    }
}

// Blocks [first, last) for rows [row, row + count)
RLHF_TARGET inline void multiply_blocks(const ProductTask& task, std::int64_t row, std::int64_t count,
                                        std::int64_t first, std::int64_t last, Tiles& tiles) {
    const std::int64_t bytes = tile_block_bytes(task.inputs);
    const auto* x = static_cast<const std::uint16_t*>(task.x) + row * task.x_stride;
    const PassRows rows(x, task.x_stride, count, task.inputs);
    shape_tiles(tiles, rows);
    for (std::int64_t b = first; b < last; ++b) {
        const char* block = static_cast<const char*>(task.blocks) + b * bytes;
        const bool more = b + 1 < task.last;
        const auto* next = more ? block + bytes : static_cast<const char*>(task.after);
        Prefetch prefetch{next, next + (more ? bytes : task.after_bytes), kTilePairs * kPairRowBytes};
        const std::int64_t output = b * kBlockOutputs<TilePairs>;
        (rows.lower > 0 ? tile_pass<true> : tile_pass<false>)(
            rows, block, task.bias + output, task.y + row * task.y_stride + output, task.y_stride, prefetch);
    }
}

// As many blocks as stay in cache meet all rows before the next ones are read.
RLHF_TARGET inline void tile_product(const ProductTask& task) {
    const std::int64_t passes = (task.rows + kPassRows - 1) / kPassRows;
    const std::int64_t chunk = std::max<std::int64_t>(kBlockBytes / 2 / tile_block_bytes(task.inputs), 1);
    Tiles tiles;
    for (std::int64_t first = task.first; first < task.last; first += chunk) {
        for (std::int64_t pass = 0; pass < passes; ++pass) {
            const std::int64_t row = pass * task.rows / passes, end = (pass + 1) * task.rows / passes;
            multiply_blocks(task, row, end - row, first, std::min(first + chunk, task.last), tiles);
        }
    }
}

// Scores of attention in tile registers: 16 keys, as they lie in the cache, meet the queries of up to 16 heads.

// S: scores (keys, 16 heads); K: keys. Tile 4: queries.
template <int S, int K>
RLHF_INLINE void score_tile(const std::uint16_t* keys, std::int64_t head_dim, const std::uint32_t* queries,
                            float* scores) {
    constexpr std::int64_t kDepth = Tiles::kRowBytes / sizeof *keys;
    tile_zero<S>();
    for (std::int64_t d = 0; d < head_dim; d += kDepth) {
        tile_load<4>(queries + d / TilePairs::kDepth * TilePairs::Isa::kLanes, Tiles::kRowBytes);
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
            return VectorScores<TilePairs>::run(keys, head_dim, queries, positions, scores, prefetch);
        }
        Tiles tiles;
        const std::int64_t left = positions % Tiles::kRows, whole = positions - left;
        for (const int tile : {1, 3}) tiles.set(tile, left > 0 ? static_cast<int>(left) : 1, Tiles::kRowBytes);
        tiles.load();
        for (std::int64_t p = 0; p < whole; p += Tiles::kRows) {
            step_by(Tiles::kRows, prefetch);
            score_tile<0, 2>(keys + p * head_dim, head_dim, queries, scores + p * TilePairs::Isa::kLanes);
        }
        if (left == 0) return;
        score_tile<1, 3>(keys + whole * head_dim, head_dim, queries, scores + whole * TilePairs::Isa::kLanes);
    }
};

}  // namespace
}  // namespace rlhf::decode
