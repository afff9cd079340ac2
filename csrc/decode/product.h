// Few rows times packed weights. A block of outputs is read once from memory and meets all rows, a tile of them at a
// time; the block that comes next is fetched into second-level cache meanwhile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "common.h"
#include "decode/kernels.h"
#include "isa/product.h"

namespace rlhf::decode {
namespace {

// What a decode product multiplies. `Stored` is the element of weights and cache, `Activation` that of the rows of x;
// a cell is what one lane of a packed weight register holds, and a product step takes one cell.

// float activations times float weights, or bf16 ones that are widened as they are read
template <class Instructions, class Element>
struct WideDecode {
    using Isa = Instructions;
    using F = typename Isa::F;
    using Operand = F;
    using Stored = Element;
    using Cell = Element;
    using Activation = float;
    using QueryCell = float;
    static constexpr int kDepth = 1;

    RLHF_INLINE static Operand load(const float* cells) { return Isa::load(cells); }
    RLHF_INLINE static Operand load(const std::uint16_t* cells) { return Isa::widen(cells); }
    RLHF_INLINE static Operand load_query(const QueryCell* cells) { return Isa::load(cells); }
    RLHF_INLINE static QueryCell query_cell(const float* query) { return *query; }
    RLHF_INLINE static Operand broadcast(const Activation* x) { return Isa::set1(*x); }
    RLHF_INLINE static Operand broadcast_stored(const Stored* x) { return Isa::set1(to_float(*x)); }
    RLHF_INLINE static F step(F sum, Operand a, Operand b) { return Isa::fma(a, b, sum); }
    RLHF_INLINE static Cell cell(const Stored* elements) { return *elements; }
};

// bf16 activations times bf16 weights, two at a time, summed in float
template <class Product>
struct PairDecode : Product {
    using typename Product::Cell;
    using typename Product::Operand;
    using typename Product::Stored;
    using Activation = std::uint16_t;
    using QueryCell = std::uint32_t;

    RLHF_INLINE static Operand load_query(const QueryCell* cells) { return Product::load(cells); }
    RLHF_INLINE static QueryCell query_cell(const float* query) {
        return to_bfloat16(query[0]) | static_cast<std::uint32_t>(to_bfloat16(query[1])) << 16;
    }
    RLHF_INLINE static Operand broadcast_stored(const Stored* pair) { return Product::broadcast(pair); }
    RLHF_INLINE static Cell cell(const Stored* pair) { return Product::cell(pair, 2); }
};

inline void store_element(float* p, float x) { *p = x; }
inline void store_element(std::uint16_t* p, float x) { *p = to_bfloat16(x); }

template <class Isa>
RLHF_INLINE typename Isa::F load_wide(const float* p) {
    return Isa::load(p);
}
template <class Isa>
RLHF_INLINE typename Isa::F load_wide(const std::uint16_t* p) {
    return Isa::widen(p);
}

constexpr int kVectors = 2;            // registers of outputs in a block
constexpr std::int64_t kStretch = 16;  // steps between two prefetches

template <class D>
constexpr std::int64_t kBlockOutputs = kVectors * D::Isa::kLanes;

template <class D>
constexpr int kTileRows = D::Isa::kLanes == 16 ? 8 : 4;  // accumulators: 16 of 32 registers, else 8 of 16

template <class D>
std::int64_t steps_of(std::int64_t inputs) {
    return (inputs + D::kDepth - 1) / D::kDepth;
}

template <class D>
std::int64_t block_bytes(std::int64_t inputs) {
    return steps_of<D>(inputs) * kBlockOutputs<D> * static_cast<std::int64_t>(sizeof(typename D::Cell));
}

// Elements of a row, float or Stored, to every kBlockOutputs-th cell; the odd element's partner is 0
template <class D, class Source>
RLHF_TARGET void pack_row(const Source* row, std::int64_t inputs, typename D::Cell* cells) {
    for (std::int64_t k = 0; k < inputs; k += D::kDepth, cells += kBlockOutputs<D>) {
        typename D::Stored elements[D::kDepth] = {};
        for (int i = 0; i < D::kDepth && k + i < inputs; ++i) {
            if constexpr (std::is_same_v<Source, typename D::Stored>) {
                elements[i] = row[k + i];
            } else {
                store_element(elements + i, row[k + i]);
            }
        }
        *cells = D::cell(elements);
    }
}

// Rows -> [step][output]; outputs that are absent are 0
template <class D>
RLHF_TARGET void pack_block(const WeightRow* rows, std::int64_t count, std::int64_t inputs, void* block) {
    using Stored = typename D::Stored;
    auto* cells = static_cast<typename D::Cell*>(block);
    if (count < kBlockOutputs<D>) std::fill_n(cells, steps_of<D>(inputs) * kBlockOutputs<D>, typename D::Cell(0));
    for (std::int64_t n = 0; n < count; ++n) {
        if (rows[n].element == Element::kFloat32) {
            pack_row<D>(static_cast<const float*>(rows[n].data), inputs, cells + n);
        } else if constexpr (sizeof(Stored) == 2) {
            pack_row<D>(static_cast<const Stored*>(rows[n].data), inputs, cells + n);
        }
    }
}

template <class D, int R>
RLHF_TARGET void product_tile(const typename D::Activation* x, std::int64_t x_stride, const typename D::Cell* cells,
                              std::int64_t steps, const float* bias, float* y, std::int64_t y_stride,
                              Prefetch& prefetch) {
    using Isa = typename D::Isa;
    typename D::F sum[R][kVectors];
    RLHF_UNROLL
    for (int r = 0; r < R; ++r) {
        RLHF_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[r][v] = Isa::load(bias + v * Isa::kLanes);
    }
    for (std::int64_t begin = 0; begin < steps; begin += kStretch) {
        prefetch.step();
        for (std::int64_t step = begin; step < std::min(begin + kStretch, steps); ++step) {
            typename D::Operand w[kVectors];
            RLHF_UNROLL
            for (int v = 0; v < kVectors; ++v) w[v] = D::load(cells + step * kBlockOutputs<D> + v * Isa::kLanes);
            RLHF_UNROLL
            for (int r = 0; r < R; ++r) {
                const auto b = D::broadcast(x + r * x_stride + step * D::kDepth);
                RLHF_UNROLL
                for (int v = 0; v < kVectors; ++v) sum[r][v] = D::step(sum[r][v], w[v], b);
            }
        }
    }
    RLHF_UNROLL
    for (int r = 0; r < R; ++r) {
        RLHF_UNROLL
        for (int v = 0; v < kVectors; ++v) Isa::store(y + r * y_stride + v * Isa::kLanes, sum[r][v]);
    }
}

template <class D>
using Tile = void (*)(const typename D::Activation*, std::int64_t, const typename D::Cell*, std::int64_t, const float*,
                      float*, std::int64_t, Prefetch&);

template <class D, int... R>
Tile<D> tile_of(std::int64_t rows, std::integer_sequence<int, R...>) {
    static constexpr Tile<D> tiles[] = {product_tile<D, R + 1>...};
    return tiles[rows - 1];
}

template <class D>
RLHF_TARGET void product(const ProductTask& task) {
    const std::int64_t steps = steps_of<D>(task.inputs), bytes = block_bytes<D>(task.inputs);
    const std::int64_t tiles = (task.rows + kTileRows<D> - 1) / kTileRows<D>;
    const auto* x = static_cast<const typename D::Activation*>(task.x);
    const auto* block = static_cast<const char*>(task.blocks) + task.first * bytes;
    const std::int64_t stretches = tiles * ((steps + kStretch - 1) / kStretch);
    for (std::int64_t b = task.first; b < task.last; ++b, block += bytes) {
        const bool more = b + 1 < task.last;
        const auto* next = more ? block + bytes : static_cast<const char*>(task.after);
        const std::int64_t ahead = more ? bytes : task.after_bytes;
        Prefetch prefetch{next, next + ahead, (ahead / stretches + 64) / 64 * 64};
        const std::int64_t output = b * kBlockOutputs<D>;
        for (std::int64_t t = 0; t < tiles; ++t) {
            const std::int64_t row = t * task.rows / tiles, rows = (t + 1) * task.rows / tiles - row;
            tile_of<D>(rows, std::make_integer_sequence<int, kTileRows<D>>())(
                x + row * task.x_stride, task.x_stride, reinterpret_cast<const typename D::Cell*>(block), steps,
                task.bias + output, task.y + row * task.y_stride + output, task.y_stride, prefetch);
        }
    }
}

}  // namespace
}  // namespace rlhf::decode
