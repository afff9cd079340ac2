// Statistics and label logits of all rows over a range of the vocabulary: each block of weights is read once and meets
// every panel of rows while it is in second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "logprobs/logits.h"
#include "logprobs/softmax.h"

namespace rlhf {
namespace {

// One model of a task: its block of weights and its logits for the panel at hand.
template <class P, class Source>
struct ModelTile {
    using Isa = typename P::Isa;
    static constexpr std::int64_t kWidth = PanelPlan<Isa>::kRows;

    WeightBlock<P, Source> weights;
    Prefetch prefetch;
    typename Isa::F top[Isa::kGroups];
    alignas(64) float z[kBlock<P> * kWidth];

    ModelTile(const ForwardTask& task, int model) : weights(task.weight[model], task.projection->hidden_size) {}

    // Logits of the panel; those of the labels that lie in this block are written out.
    RLHF_TARGET void compute(const ForwardTask& task, int model, std::int64_t row, int groups) {
        logits_tile(*task.projection, weights, task.panels[model], row, groups, prefetch, z, top);
        const std::int64_t present = std::min<std::int64_t>(task.rows - row, groups * Isa::kLanes);
        for (std::int64_t lane = 0; lane < present; ++lane) {
            const std::int64_t r = task.labels[row + lane] - weights.first;
            if (r >= 0 && r < weights.rows) task.label_logits[model][row + lane] = z[r * kWidth + lane];
        }
    }
};

template <class P, class Source>
RLHF_TARGET void forward(const ForwardTask& task) {
    using Isa = typename P::Isa;
    [[maybe_unused]] const Registers<P> registers{};
    const PanelPlan<Isa> plan(task.rows);
    const Statistics &policy = task.statistics[0], &ref = task.statistics[1];
    const std::int64_t block = block_rows<P>(task.projection->hidden_size);
    ModelTile<P, Source> models[2] = {{task, 0}, {task, 1}};
    for (int m = 0; m < task.models; ++m) reset<P>(task.statistics[m], task.rows);
    for (std::int64_t first = task.first; first < task.last; first += block) {
        for (int m = 0; m < task.models; ++m) {
            models[m].weights.set(first, std::min(block, task.last - first));
            models[m].prefetch = models[m].weights.following(std::min(block, task.last - first - block), plan.panels);
        }
        for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
            const std::int64_t row = plan.first_row(panel);
            const int groups = plan.group_count(panel);
            for (int m = 0; m < task.models; ++m) models[m].compute(task, m, row, groups);
            for (int g = 0; g < groups; ++g) {
                const std::int64_t rows = models[0].weights.rows;
                if (task.models == 1) {
                    add_tile<Isa>(models[0].z, rows, g, models[0].top[g], policy, row, KeepNothing());
                } else {
                    add_tile_pair<Isa>(models[0].z, models[1].z, rows, g, models[0].top[g], models[1].top[g], policy,
                                       ref, row);
                }
            }
        }
    }
}

}  // namespace
}  // namespace rlhf
