// The rows of weights that meet all panels of hidden rows before the next ones are read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "isa/bfloat16.h"
#include "isa/buffer.h"
#include "logprobs/kernels.h"
#include "isa/target.h"

namespace rlhf {
namespace {

// Most rows of a block: a tile of logits fits in first-level cache.
template <class P>
constexpr std::int64_t kBlock = 128;
constexpr std::int64_t kBlockBytes = 1 << 20;  // most bytes of their weights: what a second-level cache holds

template <class P>
std::int64_t block_rows(std::int64_t hidden_size) {
    const std::int64_t fitting = kBlockBytes / (hidden_size * static_cast<std::int64_t>(sizeof(typename P::Stored)));
    return std::clamp<std::int64_t>(fitting / 32 * 32, 32, kBlock<P>);
}

// Touches memory that is needed soon, a part at each step, so that its latency hides behind arithmetic.
struct Prefetch {
    const char* next = nullptr;
    const char* end = nullptr;
    std::int64_t bytes_per_step = 0;

    RLHF_TARGET void step() {
        const char* stop = std::min(end, next + bytes_per_step);
        for (; next < stop; next += 64) RLHF_PREFETCH(next);
    }
};

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
}  // namespace rlhf
