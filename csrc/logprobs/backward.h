// Gradient of some hidden rows over a range of the vocabulary: logits again, their gradient dz, and dh += dz W, a block
// of weights at a time. Both products use the block while it is in second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/buffer.h"
#include "logprobs/gradient.h"
#include "logprobs/strips.h"

namespace rlhf {
namespace {

inline RowGradients from_row(const RowGradients& g, std::int64_t row) {
    return {g.max + row,       g.log_sum + row,   g.entropy + row,
            g.d_logprob + row, g.d_entropy + row, g.limit + row};
}

template <class P, class Source>
RLHF_TARGET void backward(const BackwardTask& task) {
    using Isa = typename P::Isa;
    constexpr std::int64_t width = PanelPlan<Isa>::kRows;
    [[maybe_unused]] const Registers<P> registers{};
    const Projection& projection = *task.projection;
    const std::int64_t block = block_rows<P>(projection.hidden_size);
    const std::int64_t d_stride = gradient_stride<Isa>(projection.hidden_size);
    const PanelPlan<Isa> plan(task.rows);
    WeightBlock<P, Source> weights(task.weight, projection.hidden_size);
    GradientSums<P, Source> sums(task.d_hidden, task.rows, projection.hidden_size);
    alignas(64) float z[kBlock<P> * width];
    alignas(64) typename P::Cell cells[kBlock<P> * width / P::kDepth];
    typename P::F top[Isa::kGroups];
    Prefetch none;

    for (std::int64_t first = task.first; first < task.last; first += block) {
        weights.set(first, std::min(block, task.last - first));
        sums.begin(weights);
        for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
            const std::int64_t row = plan.first_row(panel);
            const int groups = plan.group_count(panel);
            const PanelGradient gradient{from_row(task.gradients, row), task.d_hidden + row * d_stride, d_stride};
            logits_tile(projection, weights, task.panels, row, groups, none, z, top);
            const std::int64_t present = std::min<std::int64_t>(task.rows - row, groups * Isa::kLanes);
            take_label_gradients(projection, weights, task.labels + row, present, z, gradient);
            gradient_tile(projection, weights, groups, z, gradient, cells);
            sums.add(cells, row, groups);
        }
        sums.finish();
    }
}

}  // namespace
}  // namespace rlhf
