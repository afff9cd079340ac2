#include "lora/lora_linear.h"

#include <algorithm>

#include "common.h"

namespace rlhf::lora {
namespace {

constexpr std::int64_t kPartRows = 256;        // of a task
constexpr std::int64_t kChunkBytes = 3 << 18;  // of a task's right operand: what stays in second-level cache
constexpr std::int64_t kOuterColumns = 64;     // of a task

class Packed {
   public:
    Packed(const RightMatrix& matrix, const LoraKernels& kernels, int threads)
        : matrix_(matrix),
          memory_(matrix.packed_elements()) {
        const std::int64_t panels = divide_up(matrix.columns, kPanel);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (std::int64_t panel = 0; panel < panels; ++panel) {
            const std::int64_t first = panel * kPanel, count = std::min(kPanel, matrix.columns - first);
            kernels.pack(matrix.from_column(first, count), memory_.data() + first * depth());
        }
    }
    std::int64_t depth() const { return round_up(matrix_.depth, kStep); }
    const std::uint16_t* from_column(std::int64_t first) const { return memory_.data() + first * depth(); }

   private:
    RightMatrix matrix_;
    Buffer<std::uint16_t> memory_;
};

struct Part {
    std::int64_t slot, first, last;
};

std::vector<Part> parts_of(const LoraLayer& layer) {
    std::vector<Part> parts;
    for (const LoraGroup& group : layer.groups) {
        const std::int64_t rows = group.last - group.first;
        if (rows == 0) continue;
        const std::int64_t each = round_up(divide_up(rows, divide_up(rows, kPartRows)), kPanel);
        for (std::int64_t row = group.first; row < group.last; row += each) {
            parts.push_back({group.slot, row, std::min(row + each, group.last)});
        }
    }
    return parts;
}

// A layer's product in one direction: rows of `left` times `right`, through the factors of each group's adapter.
struct Direction {
    LeftMatrix left;
    RightMatrix right;
    std::vector<RightMatrix> into, out_of;  // of each adapter: (depth of left, rank), (rank, columns of right)
    const float* bias;
    std::uint16_t* inner;
    std::int64_t inner_stride;
    std::uint16_t* out;
};

void multiply(const LoraLayer& layer, const Direction& direction) {
    const Packed right(direction.right, *layer.kernels, layer.threads);
    std::vector<Packed> into, out_of;
    for (const RightMatrix& factor : direction.into) into.emplace_back(factor, *layer.kernels, 1);
    for (const RightMatrix& factor : direction.out_of) out_of.emplace_back(factor, *layer.kernels, 1);
    const std::vector<Part> parts = parts_of(layer);
    const std::int64_t columns = direction.right.columns, panels = divide_up(columns, kPanel);
    const std::int64_t chunks = divide_up(columns * right.depth() * 2, kChunkBytes);
    const auto count = static_cast<std::int64_t>(parts.size());
#pragma omp parallel for schedule(dynamic) num_threads(layer.threads)
    for (std::int64_t i = 0; i < chunks * count; ++i) {
        const Part& part = parts[i % count];
        const std::int64_t chunk = i / count, first = chunk * panels / chunks * kPanel;
        LoraProductTask task{};
        task.rows = part.last - part.first;
        task.columns = std::min((chunk + 1) * panels / chunks * kPanel, columns) - first;
        task.left = {direction.left.data + part.first * direction.left.stride, direction.left.stride,
                     direction.left.depth};
        task.right = right.from_column(first);
        if (part.slot >= 0) {
            task.ranks = layer.adapters[part.slot].rank;
            task.into = into[part.slot].from_column(0), task.out_of = out_of[part.slot].from_column(first);
            task.inner = chunk == 0 ? direction.inner + part.first * direction.inner_stride : nullptr;
            task.inner_stride = direction.inner_stride;
        }
        task.bias = direction.bias == nullptr ? nullptr : direction.bias + first;
        task.out = direction.out + part.first * columns + first, task.out_stride = columns;
        layer.kernels->multiply(task);
    }
}

// Rows of an adapter's inner values, transposed, ready for the gradients of its factors.
struct TransposedInner {
    std::vector<RowRange> ranges;
    Buffer<std::uint16_t> left;

    TransposedInner(const LoraLayer& layer, std::int64_t slot, const std::uint16_t* inner) {
        std::int64_t blocks = 0;
        for (const LoraGroup& group : layer.groups) {
            if (group.slot != slot) continue;
            ranges.push_back({group.first, group.last});
            blocks += divide_up(group.last - group.first, kStep);
        }
        const std::int64_t ranks = layer.adapters[slot].rank, block = kStep * round_up(ranks, kTile);
        left = Buffer<std::uint16_t>(blocks * block);
        std::uint16_t* at = left.data();
        for (const RowRange& range : ranges) {
            layer.kernels->pack_transposed(inner, layer.inner_stride, ranks, range, at);
            at += divide_up(range.last - range.first, kStep) * block;
        }
    }
};

// task.out, over all `columns` of the right operand
void run_outer(const LoraLayer& layer, OuterTask task, const TransposedInner& inner, std::int64_t columns) {
    task.left = inner.left.data();
    task.ranges = inner.ranges.data(), task.range_count = static_cast<std::int64_t>(inner.ranges.size());
    task.right_stride = columns;
    const std::int64_t count = divide_up(columns, kOuterColumns);
#pragma omp parallel for schedule(dynamic) num_threads(layer.threads)
    for (std::int64_t i = 0; i < count; ++i) {
        OuterTask part = task;
        part.first_column = i * kOuterColumns, part.last_column = std::min(columns, (i + 1) * kOuterColumns);
        layer.kernels->outer(part);
    }
}

void round_adapter(const LoraLayer& layer, const LoraAdapter& adapter) {
    for (std::int64_t i = 0; i < adapter.rank * layer.inputs; ++i) {
        adapter.scaled_a[i] = to_bfloat16(adapter.scale * adapter.a[i]);
    }
    for (std::int64_t i = 0; i < adapter.rank * layer.outputs; ++i) adapter.rounded_b[i] = to_bfloat16(adapter.b[i]);
}

}  // namespace

void lora_linear(const LoraLayer& layer, const std::uint16_t* x, const float* bias, std::uint16_t* inner,
                 std::uint16_t* y) {
    Direction forward{};
    forward.left = {x, layer.inputs, layer.inputs};
    forward.right = {layer.weight, layer.inputs, layer.outputs, layer.input_stride, layer.output_stride};
    for (const LoraAdapter& adapter : layer.adapters) {
        round_adapter(layer, adapter);
        forward.into.push_back({adapter.scaled_a, layer.inputs, adapter.rank, 1, layer.inputs});
        forward.out_of.push_back({adapter.rounded_b, adapter.rank, layer.outputs, 1, adapter.rank});
    }
    forward.bias = bias, forward.inner = inner, forward.inner_stride = layer.inner_stride, forward.out = y;
    multiply(layer, forward);
    for (const LoraGroup& group : layer.groups) {
        const std::int64_t rank = group.slot < 0 ? 0 : layer.adapters[group.slot].rank;
        for (std::int64_t m = group.first; m < group.last && rank < layer.inner_stride; ++m) {
            std::fill_n(inner + m * layer.inner_stride + rank, layer.inner_stride - rank, std::uint16_t(0));
        }
    }
}

void lora_linear_backward(const LoraLayer& layer, const std::uint16_t* x, const std::uint16_t* inner,
                          const std::uint16_t* dy, std::uint16_t* dx, const std::vector<LoraGradients>& gradients) {
    const Buffer<std::uint16_t> d_inner(layer.groups.back().last * layer.inner_stride);
    Direction backward{};
    backward.left = {dy, layer.outputs, layer.outputs};
    backward.right = {layer.weight, layer.outputs, layer.inputs, layer.output_stride, layer.input_stride};
    for (const LoraAdapter& adapter : layer.adapters) {
        backward.into.push_back({adapter.rounded_b, layer.outputs, adapter.rank, adapter.rank, 1});
        backward.out_of.push_back({adapter.scaled_a, adapter.rank, layer.inputs, layer.inputs, 1});
    }
    backward.inner = d_inner.data(), backward.inner_stride = layer.inner_stride, backward.out = dx;
    multiply(layer, backward);
    for (std::int64_t slot = 0; slot < static_cast<std::int64_t>(gradients.size()); ++slot) {
        if (gradients[slot].da == nullptr) continue;
        const LoraAdapter& adapter = layer.adapters[slot];
        OuterTask of_a{}, of_b{};
        of_a.ranks = of_b.ranks = adapter.rank;
        of_a.right = x, of_a.scale = adapter.scale, of_a.out = gradients[slot].da;
        of_a.rank_stride = layer.inputs, of_a.column_stride = 1;
        of_b.right = dy, of_b.scale = 1.0f, of_b.out = gradients[slot].db;
        of_b.rank_stride = 1, of_b.column_stride = adapter.rank;
        run_outer(layer, of_a, TransposedInner(layer, slot, d_inner.data()), layer.inputs);
        run_outer(layer, of_b, TransposedInner(layer, slot, inner), layer.outputs);
    }
}

}  // namespace rlhf::lora
