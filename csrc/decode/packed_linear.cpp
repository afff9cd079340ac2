#include "decode/packed_linear.h"

#include <algorithm>

#include "common.h"

namespace rlhf::decode {
namespace {

// (outputs, rank) float -> (rank, outputs) of the model's element
Buffer<char> transposed(const LinearSource& source, Element element) {
    const bool bf16 = element == Element::kBFloat16;
    Buffer<char> memory(std::max<std::int64_t>(source.rank * source.outputs * (bf16 ? 2 : 4), 1));
    for (std::int64_t r = 0; r < source.rank; ++r) {
        for (std::int64_t n = 0; n < source.outputs; ++n) {
            const float entry = source.b[n * source.rank + r];
            const std::int64_t at = r * source.outputs + n;
            if (bf16) {
                reinterpret_cast<std::uint16_t*>(memory.data())[at] = to_bfloat16(entry);
            } else {
                reinterpret_cast<float*>(memory.data())[at] = entry;
            }
        }
    }
    return memory;
}

}  // namespace

PackedLinear::PackedLinear(const std::vector<LinearSource>& sources, Element element, const DecodeKernels& kernels,
                           Arena& arena)
    : kernels_(&kernels), inputs_(sources.front().inputs), block_bytes_(kernels.block_bytes(inputs_)) {
    std::vector<WeightRow> rows;
    const std::int64_t element_bytes = element == Element::kBFloat16 ? 2 : 4;
    for (const LinearSource& source : sources) {
        const auto* weight = static_cast<const char*>(source.weight);
        parts_.push_back({static_cast<std::int64_t>(rows.size()), source.outputs, 0, source.rank, source.scale,
                          source.outputs * element_bytes, transposed(source, element)});
        for (std::int64_t n = 0; n < source.outputs; ++n) {
            rows.push_back({weight + n * source.stride * element_bytes, element});
            bias_.push_back(source.bias == nullptr ? 0.0f : source.bias[n]);
        }
    }
    for (std::size_t i = 0; i < sources.size(); ++i) {
        parts_[i].first_rank = static_cast<std::int64_t>(rows.size());
        for (std::int64_t r = 0; r < sources[i].rank; ++r) {
            rows.push_back({sources[i].a + r * inputs_, Element::kFloat32});
        }
    }
    const auto count = static_cast<std::int64_t>(rows.size());
    blocks_ = (count + kernels.block_outputs - 1) / kernels.block_outputs;
    bias_.resize(static_cast<std::size_t>(outputs()), 0.0f);
    memory_ = arena.take(bytes());
#pragma omp parallel for
    for (std::int64_t b = 0; b < blocks_; ++b) {
        const std::int64_t first = b * kernels.block_outputs;
        kernels.pack(rows.data() + first, std::min(kernels.block_outputs, count - first), inputs_,
                     memory_ + b * block_bytes_);
    }
}

void PackedLinear::multiply(const void* x, std::int64_t rows, std::int64_t x_stride, float* y, std::int64_t y_stride,
                            const PackedLinear* after, int worker, int team) const {
    ProductTask task{};
    task.x = x, task.rows = rows, task.x_stride = x_stride;
    task.blocks = memory_, task.inputs = inputs_, task.bias = bias_.data();
    task.first = first_block(worker, team), task.last = first_block(worker + 1, team);
    task.y = y, task.y_stride = y_stride;
    if (after != nullptr) {
        task.after = after->block(after->first_block(worker, team));
        task.after_bytes = after->block_bytes_;
    }
    kernels_->product(task);
}

void PackedLinear::add_adapter(float* y, std::size_t part, std::int64_t first, std::int64_t last) const {
    const Part& p = parts_[part];
    if (p.rank == 0) return;
    const char* b = p.b.data() + first * p.row_bytes / p.outputs;
    kernels_->add_outer(y + p.first_rank, p.rank, p.scale, b, p.outputs, last - first, y + p.first + first);
}

}  // namespace rlhf::decode
