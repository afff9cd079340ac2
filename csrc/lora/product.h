// Rows times a packed right operand, 32 rows x 32 columns at a time in four tiles of sums; and how it is packed.
#pragma once

#include <algorithm>

#include "common.h"
#include "isa/amx.h"
#include "lora/lora_linear.h"

namespace rlhf::lora {
namespace {

// Matrices as right operands of tile products.

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

constexpr std::int64_t kBlockRows = 2 * kTile;

// sums (32, kPanel) + bias -> bf16 rows of out
RLHF_TARGET inline void write_block(const float* sums, const float* bias, std::int64_t rows, std::int64_t columns,
                                    std::uint16_t* out, std::int64_t stride) {
    for (std::int64_t c = 0; c < columns; c += 16) {
        const auto present = static_cast<__mmask16>(columns - c >= 16 ? 0xffff : (1 << (columns - c)) - 1);
        const __m512 shift = bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(present, bias + c);
        for (std::int64_t r = 0; r < rows; ++r) {
            const __m512 y = _mm512_load_ps(sums + r * kPanel + c) + shift;
            _mm256_mask_storeu_epi16(out + r * stride + c, present, (__m256i)_mm512_cvtneps_pbh(y));
        }
    }
}

// A block of rows of a left operand as tiles load it: in place, or copied, where there are fewer rows or the depth is
// no whole number of steps.
class LeftBlock {
   public:
    explicit LeftBlock(const LeftMatrix& matrix) : matrix_(matrix), width_(round_up(matrix.depth, kStep)) {}

    RLHF_TARGET void set(std::int64_t row, std::int64_t rows) {
        data = matrix_.data + row * matrix_.stride, stride = matrix_.stride;
        if (rows == kBlockRows && width_ == matrix_.depth) return;
        if (copy_.data() == nullptr) copy_ = Buffer<std::uint16_t>(kBlockRows * width_);
        std::fill_n(copy_.data(), kBlockRows * width_, std::uint16_t(0));
        for (std::int64_t r = 0; r < rows; ++r) {
            std::copy_n(data + r * stride, matrix_.depth, copy_.data() + r * width_);
        }
        data = copy_.data(), stride = width_;
    }

    const std::uint16_t* data = nullptr;
    std::int64_t stride = 0;

   private:
    LeftMatrix matrix_;
    std::int64_t width_;
    Buffer<std::uint16_t> copy_;
};

// Fetches the cache lines of `rows` rows, a share at each step; those of a left operand are needed by the next block.
class RowPrefetch {
   public:
    RowPrefetch(const LeftMatrix& matrix, std::int64_t first, std::int64_t rows, std::int64_t steps)
        : at_(reinterpret_cast<const char*>(matrix.data + first * matrix.stride)), bytes_(matrix.depth * 2),
          stride_(matrix.stride * 2), rows_(rows),
          share_(rows * ((bytes_ + 63) / 64) / std::max<std::int64_t>(steps, 1) + 1) {}

    RLHF_TARGET void step() {
        for (std::int64_t i = 0; i < share_ && row_ < rows_; ++i, byte_ += 64) {
            if (byte_ >= bytes_) byte_ = 0, ++row_;
            if (row_ < rows_) RLHF_PREFETCH(at_ + row_ * stride_ + byte_);
        }
    }

   private:
    const char* at_;
    std::int64_t bytes_, stride_, rows_, share_, row_ = 0, byte_ = 0;
};

// sums (32, up to 16 kWidth) += rows times a panel of a right operand
template <int kWidth>
RLHF_INLINE void add_panel(const std::uint16_t* left, std::int64_t stride, std::int64_t depth,
                           const std::uint16_t* panel) {
    multiply_tiles<2, kWidth>(left, stride * 2, panel, kWidth * Tiles::kRowBytes, depth / kStep);
}

// The rows of a block times the columns of an adapter, as the left operand of its second product.
class InnerBlock {
   public:
    explicit InnerBlock(const LoraProductTask& task)
        : stride(round_up(task.ranks, kStep)), data(kBlockRows * stride), task_(task) {
        std::fill_n(data.data(), kBlockRows * stride, std::uint16_t(0));
    }

    RLHF_TARGET void set(const LeftBlock& left, std::int64_t row, std::int64_t rows, float* sums) {
        const std::int64_t depth = round_up(task_.left.depth, kStep);
        for (std::int64_t rank = 0; rank < task_.ranks; rank += kPanel) {
            const std::int64_t ranks = std::min(kPanel, task_.ranks - rank);
            (ranks > kTile ? project<2> : project<1>)(left, depth, task_.into + rank * depth, sums);
            write_block(sums, nullptr, rows, ranks, data.data() + rank, stride);
            if (task_.inner != nullptr) {
                write_block(sums, nullptr, rows, ranks, task_.inner + row * task_.inner_stride + rank,
                            task_.inner_stride);
            }
        }
    }

    const std::int64_t stride;
    const Buffer<std::uint16_t> data;

   private:
    template <int kWidth>
    RLHF_TARGET static void project(const LeftBlock& left, std::int64_t depth, const std::uint16_t* panel,
                                    float* sums) {
        zero_sums<2, kWidth>();
        add_panel<kWidth>(left.data, left.stride, depth, panel);
        store_sums<2, kWidth>(sums, kPanel);
    }

    const LoraProductTask& task_;
};

template <int kWidth>
RLHF_TARGET void panel_sums(const LoraProductTask& task, const LeftBlock& left, const InnerBlock& inner,
                            std::int64_t panel, float* sums) {
    const std::int64_t depth = round_up(task.left.depth, kStep);
    zero_sums<2, kWidth>();
    add_panel<kWidth>(left.data, left.stride, depth, task.right + panel * depth);
    if (task.ranks > 0) {
        add_panel<kWidth>(inner.data.data(), inner.stride, inner.stride, task.out_of + panel * inner.stride);
    }
    store_sums<2, kWidth>(sums, kPanel);
}

RLHF_TARGET inline void lora_product(const LoraProductTask& task) {
    const Tiles tiles;
    alignas(64) float sums[kBlockRows * kPanel];
    LeftBlock left(task.left);
    InnerBlock inner(task);
    for (std::int64_t row = 0; row < task.rows; row += kBlockRows) {
        const std::int64_t rows = std::min(kBlockRows, task.rows - row), next = row + rows;
        RowPrefetch ahead(task.left, next, std::min(kBlockRows, task.rows - next), task.columns / kPanel);
        left.set(row, rows);
        inner.set(left, row, rows, sums);
        for (std::int64_t panel = 0; panel < task.columns; panel += kPanel) {
            const std::int64_t columns = std::min(kPanel, task.columns - panel);
            std::uint16_t* out = task.out + row * task.out_stride + panel;
            for (std::int64_t r = 0; r < rows; ++r) __builtin_prefetch(out + r * task.out_stride, 1, 3);
            ahead.step();
            (columns > kTile ? panel_sums<2> : panel_sums<1>)(task, left, inner, panel, sums);
            write_block(sums, task.bias == nullptr ? nullptr : task.bias + panel, rows, columns, out, task.out_stride);
        }
    }
}

}  // namespace
}  // namespace rlhf::lora
