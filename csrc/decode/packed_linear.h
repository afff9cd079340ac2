// Linear layers that read the same input, packed as one: their weights side by side, and behind them the A of their
// adapters, so that x A^T comes out of the same product. y = x W^T + bias + scale (x A^T) B^T (Hu et al. 2021); the
// adapter is never added into W, where bf16 would round small changes away.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common.h"
#include "decode/kernels.h"

namespace rlhf::decode {

// Memory for packed weights, in large chunks that the system may map with huge pages: a decode step reads all of it,
// and with small pages it waits for address translation.
class Arena {
   public:
    char* take(std::int64_t bytes) {  // on a cache line boundary, uninitialised, alive as long as the arena
        bytes = (bytes + 63) / 64 * 64;
        if (chunks_.empty() || used_ + bytes > size_) add_chunk(std::max(bytes, kChunkBytes));
        used_ += bytes;
        return chunks_.back().get() + used_ - bytes;
    }

   private:
    static constexpr std::int64_t kChunkBytes = 64 << 20;  // what is never written takes no memory
    static constexpr std::align_val_t kHugePage{2 << 20};
    struct Free {
        void operator()(char* p) const { ::operator delete(p, kHugePage); }
    };

    void add_chunk(std::int64_t bytes) {
        size_ = bytes, used_ = 0;
        chunks_.emplace_back(static_cast<char*>(::operator new(static_cast<std::size_t>(bytes), kHugePage)));
#ifdef MADV_HUGEPAGE
        madvise(chunks_.back().get(), static_cast<std::size_t>(bytes), MADV_HUGEPAGE);  // a wish: it may be refused
#endif
    }

    std::vector<std::unique_ptr<char, Free>> chunks_;
    std::int64_t size_ = 0, used_ = 0;
};

// One linear layer: weight (outputs, inputs) of the model's element, rows `stride` apart; bias (outputs,) or nullptr;
// an adapter in float, contiguous, or rank 0: a (rank, inputs), b (outputs, rank).
struct LinearSource {
    const void* weight;
    std::int64_t outputs, inputs, stride;
    const float* bias;
    const float *a, *b;
    std::int64_t rank;
    float scale;
};

class PackedLinear {
   public:
    // The packed weights lie in `arena`, which has to outlive this.
    PackedLinear(const std::vector<LinearSource>& sources, Element element, const DecodeKernels& kernels, Arena& arena);

    // y (rows, outputs()) for a share of the outputs, that of `worker` of `team`; `after` is the layer that follows.
    void multiply(const void* x, std::int64_t rows, std::int64_t x_stride, float* y, std::int64_t y_stride,
                  const PackedLinear* after, int worker, int team) const;

    // Completes outputs [first, last) of a part in row y by its adapter.
    void add_adapter(float* y, std::size_t part, std::int64_t first, std::int64_t last) const;
    void add_adapter(float* y, std::size_t part) const { add_adapter(y, part, 0, parts_[part].outputs); }

    std::int64_t first_output(std::size_t part) const { return parts_[part].first; }
    std::int64_t outputs() const { return blocks_ * kernels_->block_outputs; }  // a row of y, with padding
    std::int64_t bytes() const { return blocks_ * block_bytes_; }

   private:
    struct Part {
        std::int64_t first, outputs, first_rank, rank;
        float scale;
        std::int64_t row_bytes;
        Buffer<char> b;  // (rank, outputs) of the model's element
    };

    std::int64_t first_block(int worker, int team) const { return worker * blocks_ / team; }
    const char* block(std::int64_t index) const { return memory_ + index * block_bytes_; }

    const DecodeKernels* kernels_;
    std::int64_t inputs_, blocks_ = 0, block_bytes_ = 0;
    char* memory_ = nullptr;
    std::vector<float> bias_;
    std::vector<Part> parts_;
};

}  // namespace rlhf::decode
