// The Gumbel-max trick (Gumbel 1954): the token with the largest z + g, g = -log E with E exponential, is a draw from
// softmax(z). E comes from a counter-based hash of (key of the row, token), so a draw depends on nothing else; its 31
// bits lie where E is small, which is where a token wins.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "logprobs/forward.h"

namespace rlhf::logprobs {
namespace {

constexpr std::int64_t kRaceStep = 8;  // rows that race between two steps of a prefetch

// lowbias32 (Wellons 2018), a bijection of 32 bits
template <class U>
RLHF_INLINE U mix32(U x) {
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0xd35a2d97u;
    return x ^ (x >> 15);
}

// E = -log(1 - v), v uniform in (0, 1); a series where 1 - v would lose the digits of v
template <class Isa>
RLHF_INLINE typename Isa::F exponential(typename Isa::U bits) {
    const auto i = Isa::to_float((typename Isa::I)(bits >> 1));
    auto v = Isa::fma(i, Isa::set1(0x1p-31f), Isa::set1(0x1p-32f));
    const auto most = Isa::set1(1.0f - 0x1p-24f);
    v = v > most ? most : v;
    auto series = Isa::fma(v, Isa::set1(0.25f), Isa::set1(1.0f / 3));
    series = Isa::fma(v, series, Isa::set1(0.5f));
    series = Isa::fma(v * v, series, v);
    const auto logarithm = Isa::set1(0.0f) - log<Isa>(Isa::set1(1.0f) - v);
    return v < Isa::set1(1.0f / 64) ? series : logarithm;
}

// A group of the tile z, vocabulary rows from `first` on: the winner so far of each lane. Without keys the largest
// logit wins; the first of several.
template <class Isa>
RLHF_TARGET void race_tile(const float* z, std::int64_t rows, int group, std::int64_t first, std::int64_t row,
                           const SampleTask& task, Prefetch& prefetch) {
    using I = typename Isa::I;
    using U = typename Isa::U;
    const std::int64_t lane = group * Isa::kLanes, at = row + lane;
    U key{}, second{};
    if (task.keys != nullptr) {
        std::memcpy(&key, task.keys + at, sizeof key);
        std::memcpy(&second, task.second_keys + at, sizeof second);
    }
    auto best = Isa::load(task.best + at), chosen = Isa::load(task.logit + at);
    I token;
    std::memcpy(&token, task.token + at, sizeof token);
    for (std::int64_t r = 0; r < rows; ++r) {
        if (r % kRaceStep == 0) prefetch.step();
        const auto logit = Isa::load(z + r * Isa::kLanes * Isa::kGroups + lane);
        auto score = logit;
        if (task.keys != nullptr) {
            const U bits = mix32<U>(mix32<U>(key + static_cast<std::uint32_t>(first + r)) + second);
            score = score - log<Isa>(exponential<Isa>(bits));
        }
        const I id = I{} + static_cast<std::int32_t>(first + r);
        token = score > best ? id : token;
        chosen = score > best ? logit : chosen;
        best = score > best ? score : best;
    }
    Isa::store(task.best + at, best);
    Isa::store(task.logit + at, chosen);
    std::memcpy(task.token + at, &token, sizeof token);
}

template <class P, class Source>
RLHF_TARGET void sample(const SampleTask& task) {
    using Isa = typename P::Isa;
    [[maybe_unused]] const Registers<P> registers{};
    const PanelPlan<Isa> plan(task.rows);
    const std::int64_t block = block_rows<P>(task.projection->hidden_size);
    WeightBlock<P, Source> weights(task.weight, task.projection->hidden_size);
    typename P::F top[Isa::kGroups];
    alignas(64) float z[kBlock<P> * PanelPlan<Isa>::kRows];
    reset<P>(task.statistics, task.rows);
    std::fill_n(task.best, padded_rows<P>(task.rows), kLowest);
    std::fill_n(task.logit, padded_rows<P>(task.rows), kLowest);
    std::fill_n(task.token, padded_rows<P>(task.rows), static_cast<std::int32_t>(task.first));
    for (std::int64_t first = task.first; first < task.last; first += block) {
        weights.set(first, std::min(block, task.last - first));
        Prefetch prefetch = weights.following(std::min(block, task.last - first - block), plan.panels,
                                              plan.groups * weights.rows / kRaceStep);
        for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
            const std::int64_t row = plan.first_row(panel);
            const int groups = plan.group_count(panel);
            logits_tile(*task.projection, weights, task.panels, row, groups, prefetch, z, top);
            for (int g = 0; g < groups; ++g) {
                add_tile<Isa>(z, weights.rows, g, top[g], task.statistics, row, KeepNothing());
                race_tile<Isa>(z, weights.rows, g, first, row, task, prefetch);
            }
        }
    }
}

}  // namespace
}  // namespace rlhf::logprobs
