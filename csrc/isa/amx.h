// Tile registers (AMX): a step is a product of 16 rows x 32 elements with 16 pairs x 16 lanes, bf16 summed in
// float. What a `Cell` matrix [step][lane] of PairProduct holds is such a right operand as it lies in memory.
//
// The instructions are written out: the compilers' own wrappers do not say that a tile is loaded from memory, so that a
// store before it may be moved behind it.
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

// bf16 elements as PairProduct has them, for the products that take them in tiles.
struct TileProduct : PairProduct {};

}  // namespace
}  // namespace rlhf
