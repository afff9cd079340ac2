// Tile registers (AMX): a step is a product of 16 rows x 32 elements with 16 pairs x 16 lanes, bf16 summed in
// float. What a `Cell` matrix [step][lane] of PairProduct holds is such a right operand as it lies in memory.
//
// The instructions are written out: the compilers' own wrappers do not say that a tile is loaded from memory, so that a
// store before it may be moved behind it.
//
// Gained over AVX-512: the two were not run side by side on one processor. On one with tiles `linear_logprobs` (N 1024,
// V 49152) takes 1/4.6 of torch eager's time, on one with AVX-512 alone 1/2.0: `python -m benchmarks.run --peers --op
// linear_logprobs --rounds 3`, docs/kernels.md, "With AMX" and "Measured on a CPU".
#pragma once

#include "isa/avx512bf16.h"

namespace rlhf {
namespace {

// The thread's tiles while this lives: eight of 16 rows of 64 bytes, or of as many rows as are named for the left
// operands and sums of a smaller product.
class Tiles {
   public:
    static constexpr int kRows = 16, kRowBytes = 64;

    RLHF_TARGET Tiles() {
        for (int tile = 0; tile < 8; ++tile) set(tile, kRows, kRowBytes);
        load();
    }
    RLHF_TARGET ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

    // In force from `load` on, which clears all tiles.
    void set(int tile, int rows, int row_bytes) {
        config_.rows[tile] = static_cast<std::uint8_t>(rows);
        config_.row_bytes[tile] = static_cast<std::uint16_t>(row_bytes);
    }
    RLHF_TARGET void load() { asm volatile("ldtilecfg %0" ::"m"(config_) : "memory"); }

   private:
    struct alignas(64) Config {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t row_bytes[16] = {};
        std::uint8_t rows[16] = {};
    } config_;
};

// T: number of a tile, 0 to 7; strides in bytes
template <int T>
RLHF_INLINE void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
RLHF_INLINE void tile_load(const void* from, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
RLHF_INLINE void tile_store(void* to, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C += A B: A (rows, 32) bf16, B (16, 16) pairs, C (rows, 16) float
template <int C, int A, int B>
RLHF_INLINE void tile_multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// Sums of up to 32 x 32 in four tiles, the inner loop of every product that takes bf16 in tiles of 16 rows. Sums of
// R x G tiles are tiles 0 to 3; left operands come to 4 and 5, right ones to 6 and 7.
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
