// Statistics and label logits of all rows over a range of the vocabulary: each block of weights is read once and meets
// every panel of rows while it is in second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/vectors.h"
#include "logprobs/kernels.h"
#include "logprobs/logits.h"
#include "logprobs/panels.h"

namespace rlhf::logprobs {
namespace {

// Running softmax statistics of rows, a tile of logits at a time (Milakov and Gimelshein 2018): with m the largest
// logit so far, the sums are relative to e^m, and are rescaled when m grows. A tile is summed by itself before it is
// added, which keeps rounding errors near those of a pairwise sum.

template <class P>
void reset(const Statistics& statistics, std::int64_t rows) {
    std::fill_n(statistics.max, padded_rows<P>(rows), kLowest);
    std::fill_n(statistics.sum, padded_rows<P>(rows), 0.0f);
    if (statistics.moment != nullptr) std::fill_n(statistics.moment, padded_rows<P>(rows), 0.0f);
}

template <class Isa>
struct Shift {  // from one running maximum to the next: e^(old - new), and old - new itself
    typename Isa::F max, change, factor;

    RLHF_INLINE Shift(const float* old, typename Isa::F top) {
        const auto before = Isa::load(old);
        max = Isa::max(before, top);
        change = floored<Isa>(before - max);
        factor = exp<Isa>(change);
    }
};

struct KeepNothing {
    template <class F>
    RLHF_INLINE void operator()(std::int64_t, F, F) const {}
};

// A group of the tile z, whose rows start at `row`: sums of e^d and of e^d d, d = z - m. Each vector's place in the
// tile, logits and e^d are given to `keep`. Returns e^(old m - new m), by which the caller's own sums are to be scaled.
template <class Isa, class Keep>
RLHF_TARGET typename Isa::F add_tile(const float* z, std::int64_t rows, int group, typename Isa::F top,
                                     const Statistics& to, std::int64_t row, const Keep& keep) {
    const std::int64_t lane = group * Isa::kLanes, at = row + lane;
    const Shift<Isa> shift(to.max + at, top);
    auto sum = Isa::set1(0.0f), moment = Isa::set1(0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t cell = r * Isa::kLanes * Isa::kGroups + lane;
        const auto logit = Isa::load(z + cell);
        const auto d = floored<Isa>(logit - shift.max);
        const auto e = exp<Isa>(d);
        sum = sum + e;
        moment = Isa::fma(e, d, moment);
        keep(cell, logit, e);
    }
    const auto old_sum = Isa::load(to.sum + at);
    const auto old_moment = Isa::fma(shift.change, old_sum, Isa::load(to.moment + at));
    Isa::store(to.max + at, shift.max);
    Isa::store(to.sum + at, Isa::fma(old_sum, shift.factor, sum));
    Isa::store(to.moment + at, Isa::fma(old_moment, shift.factor, moment));
    return shift.factor;
}

// Two models: the policy's moment is the sum of e^d (d - d') with d' that of the reference.
template <class Isa>
RLHF_TARGET void add_tile_pair(const float* z, const float* ref_z, std::int64_t rows, int group, typename Isa::F top,
                               typename Isa::F ref_top, const Statistics& to, const Statistics& ref,
                               std::int64_t row) {
    const std::int64_t lane = group * Isa::kLanes, at = row + lane;
    const Shift<Isa> shift(to.max + at, top), ref_shift(ref.max + at, ref_top);
    auto sum = Isa::set1(0.0f), moment = Isa::set1(0.0f), ref_sum = Isa::set1(0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t cell = r * Isa::kLanes * Isa::kGroups + lane;
        const auto d = floored<Isa>(Isa::load(z + cell) - shift.max);
        const auto ref_d = floored<Isa>(Isa::load(ref_z + cell) - ref_shift.max);
        const auto e = exp<Isa>(d);
        sum = sum + e;
        moment = Isa::fma(e, d - ref_d, moment);
        ref_sum = ref_sum + exp<Isa>(ref_d);
    }
    const auto old_sum = Isa::load(to.sum + at);
    const auto old_moment = Isa::fma(shift.change - ref_shift.change, old_sum, Isa::load(to.moment + at));
    Isa::store(to.max + at, shift.max);
    Isa::store(to.sum + at, Isa::fma(old_sum, shift.factor, sum));
    Isa::store(to.moment + at, Isa::fma(old_moment, shift.factor, moment));
    Isa::store(ref.max + at, ref_shift.max);
    Isa::store(ref.sum + at, Isa::fma(Isa::load(ref.sum + at), ref_shift.factor, ref_sum));
}

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
}  // namespace rlhf::logprobs
