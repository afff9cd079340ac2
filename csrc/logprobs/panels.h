// The two operands of a tile of logits: hidden rows as panels, side by side in the lanes, and blocks of weights.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common.h"
#include "isa/product.h"
#include "logprobs/kernels.h"

namespace rlhf::logprobs {
namespace {

// What a thread holds while it multiplies.
template <class P>
struct Registers {};

// Steps that a product takes at once: operands are filled up to a multiple of them.
template <class P>
constexpr int kStepsAtOnce = 1;

// Rows of hidden states as panels: up to kGroups groups of kLanes rows, so that one register holds one element, or one
// pair of elements, of kLanes rows. A panel is [step][group][lane]; panels differ by at most one group.
template <class Isa>
struct PanelPlan {
    static constexpr int kRows = Isa::kLanes * Isa::kGroups;  // most rows of a panel
    std::int64_t groups, panels;

    explicit PanelPlan(std::int64_t rows)
        : groups((rows + Isa::kLanes - 1) / Isa::kLanes), panels((groups + Isa::kGroups - 1) / Isa::kGroups) {}
    std::int64_t first_group(std::int64_t panel) const { return panel * groups / panels; }
    std::int64_t first_row(std::int64_t panel) const { return first_group(panel) * Isa::kLanes; }
    int group_count(std::int64_t panel) const {
        return static_cast<int>(first_group(panel + 1) - first_group(panel));
    }
};

template <class P>
constexpr std::int64_t step_count(std::int64_t hidden_size) {
    constexpr std::int64_t elements = P::kDepth * kStepsAtOnce<P>;
    return (hidden_size + elements - 1) / elements * kStepsAtOnce<P>;
}

template <class P>
std::int64_t padded_rows(std::int64_t rows) {
    return PanelPlan<typename P::Isa>(rows).groups * P::Isa::kLanes;
}

template <class P>
std::int64_t panel_bytes(std::int64_t rows, std::int64_t hidden_size) {
    return padded_rows<P>(rows) * step_count<P>(hidden_size) * static_cast<std::int64_t>(sizeof(typename P::Cell));
}

template <class P>
inline const typename P::Cell* panel_of(const void* panels, std::int64_t first_row, std::int64_t hidden_size) {
    return static_cast<const typename P::Cell*>(panels) + first_row * step_count<P>(hidden_size);
}

template <class P, class Source>
RLHF_TARGET void pack(const Matrix& hidden, const std::int64_t* ids, std::int64_t rows, std::int64_t hidden_size,
                      void* panels) {
    const PanelPlan<typename P::Isa> plan(rows);
    auto* out = static_cast<typename P::Cell*>(panels);
    for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
        const std::int64_t first = plan.first_row(panel), lanes = plan.first_row(panel + 1) - first;
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            const bool present = first + lane < rows;
            const std::int64_t id = present ? ids[first + lane] : 0;
            const auto* row = static_cast<const Source*>(hidden.data) + id * hidden.stride;
            for (std::int64_t step = 0; step < step_count<P>(hidden_size); ++step) {
                const int left = static_cast<int>(std::min<std::int64_t>(hidden_size - step * P::kDepth, P::kDepth));
                out[step * lanes + lane] =
                    present && left > 0 ? P::cell(row + step * P::kDepth, left) : typename P::Cell(0);
            }
        }
        out += lanes * step_count<P>(hidden_size);
    }
}

// Most rows of a block: a tile of logits fits in first-level cache.
template <class P>
constexpr std::int64_t kBlock = 128;

template <class P>
std::int64_t block_rows(std::int64_t hidden_size) {
    const std::int64_t fitting = kBlockBytes / (hidden_size * static_cast<std::int64_t>(sizeof(typename P::Stored)));
    return std::clamp<std::int64_t>(fitting / 32 * 32, 32, kBlock<P>);
}

// The rows of a vocabulary block as the product takes them: in place, or converted into a buffer.
template <class P, class Source>
class WeightBlock {
   public:
    using Stored = typename P::Stored;
    static constexpr bool kInPlace = std::is_same_v<Source, Stored>;
    const Stored* data = nullptr;
    std::int64_t stride = 0, first = 0, rows = 0;

    WeightBlock(const Matrix& weight, std::int64_t hidden_size) : weight_(weight), hidden_size_(hidden_size) {
        if (!kInPlace) buffer_ = Buffer<Stored>(block_rows<P>(hidden_size) * hidden_size);
    }

    RLHF_TARGET void set(std::int64_t first_row, std::int64_t count) {
        first = first_row, rows = count;
        const Source* source = static_cast<const Source*>(weight_.data) + first * weight_.stride;
        if constexpr (kInPlace) {
            data = source, stride = weight_.stride;
        } else {
            for (std::int64_t r = 0; r < rows; ++r) {
                for (std::int64_t h = 0; h < hidden_size_; ++h) {
                    buffer_.data()[r * hidden_size_ + h] = to_float(source[r * weight_.stride + h]);
                }
            }
            data = buffer_.data(), stride = hidden_size_;
        }
    }

    // The `count` rows after this block, to be touched while this one meets `panels` panels, in the steps of their
    // products and `others` that the caller takes.
    Prefetch following(std::int64_t count, std::int64_t panels, std::int64_t others = 0) const {
        if (!kInPlace || stride != hidden_size_ || count <= 0) return {};
        const auto* begin = reinterpret_cast<const char*>(data + rows * stride);
        const std::int64_t bytes = count * stride * static_cast<std::int64_t>(sizeof(Stored));
        const std::int64_t steps = others + panels * std::max<std::int64_t>(rows / P::Isa::kRows, 1);
        return {begin, begin + bytes, (bytes / steps + 64) / 64 * 64};
    }

   private:
    Matrix weight_;
    std::int64_t hidden_size_;
    Buffer<Stored> buffer_;
};

}  // namespace
}  // namespace rlhf::logprobs
