// Rewards, and advantages from them.
#include <algorithm>

#include "columns/chunks.h"
#include "columns/columns.h"

namespace rlhf::columns {
namespace {

// Slots that take some 10 microseconds: less is not worth waking a thread
constexpr std::int64_t kShapedPerThread = 65536, kWalkedPerThread = 16384;

// Each advantage waits for the one after it, so a single sequence leaves the processor idle most of the time. Two are
// walked side by side instead. Not more: their columns often lie a power of two apart, where more of them would evict
// one another from the cache.
constexpr int kSideBySide = 2;

template <typename T>
struct Columns {
    T* rewards;
    const T* values;
    T* returns;
    T gamma, gamma_lam;
};

// A sequence that is done from slot `end` on.
template <typename T>
struct Walk {
    std::int64_t start, end;
    T next_value, next_advantage;
};

// `steps` more slots of each of N walks.
template <int N, typename T>
void advance(const Columns<T>& columns, Walk<T>* walks, std::int64_t steps) {
    const auto [rewards, values, returns, gamma, gamma_lam] = columns;
    std::int64_t end[N];
    T next_value[N], next_advantage[N];  // apart from `walks`, so that they stay in registers
    for (int n = 0; n < N; ++n) {
        end[n] = walks[n].end;
        next_value[n] = walks[n].next_value;
        next_advantage[n] = walks[n].next_advantage;
    }
    for (std::int64_t step = 1; step <= steps; ++step) {
        for (int n = 0; n < N; ++n) {
            const std::int64_t t = end[n] - step;
            const T value = values[t];
            const T delta = rewards[t] + gamma * next_value[n] - value;
            next_advantage[n] = delta + gamma_lam * next_advantage[n];
            next_value[n] = value;
            rewards[t] = next_advantage[n];
            returns[t] = next_advantage[n] + value;
        }
    }
    for (int n = 0; n < N; ++n) walks[n] = {walks[n].start, end[n] - steps, next_value[n], next_advantage[n]};
}

// Sequences [first, last), the next one starting as soon as one of those side by side is done.
template <typename T>
void walk(const Columns<T>& columns, const std::int32_t* offsets, const T* bootstrap, std::int64_t first,
          std::int64_t last) {
    Walk<T> walks[kSideBySide];
    int active = 0;
    while (true) {
        for (; active < kSideBySide && first < last; ++first) {
            const T beyond = bootstrap == nullptr ? T(0) : bootstrap[first];
            walks[active++] = {offsets[first], offsets[first + 1], beyond, T(0)};
        }
        if (active < kSideBySide) break;
        std::int64_t steps = walks[0].end - walks[0].start;
        for (const Walk<T>& w : walks) steps = std::min(steps, w.end - w.start);
        advance<kSideBySide>(columns, walks, steps);
        const auto done = [](const Walk<T>& w) { return w.end == w.start; };
        active = static_cast<int>(std::remove_if(walks, walks + active, done) - walks);
    }
    for (int n = 0; n < active; ++n) advance<1>(columns, walks + n, walks[n].end - walks[n].start);
}

}  // namespace

template <typename T>
void shape_rewards(T* rewards, const T* kl, std::int64_t slots, const T* scores, const std::int64_t* score_index,
                   std::int64_t sequences, T kl_coef, int threads) {
    const int team = useful_team(slots, kShapedPerThread, threads);
    for_each_chunk(slots, team, [=](std::int64_t, std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) rewards[t] = -kl_coef * kl[t];
    });
    for (std::int64_t b = 0; b < sequences; ++b) {
        if (score_index[b] >= 0) rewards[score_index[b]] += scores[b];
    }
}

template void shape_rewards<float>(float*, const float*, std::int64_t, const float*, const std::int64_t*, std::int64_t,
                                   float, int);
template void shape_rewards<double>(double*, const double*, std::int64_t, const double*, const std::int64_t*,
                                    std::int64_t, double, int);

template <typename T>
void gae(T* rewards, const T* values, T* returns, const std::int32_t* offsets, const T* bootstrap,
         std::int64_t sequences, T gamma, T gamma_lam, int threads) {
    const Columns<T> columns{rewards, values, returns, gamma, gamma_lam};
    const std::int64_t slots = offsets[sequences];
    const int team = useful_team(slots, kWalkedPerThread, threads);
    // Sequences that start in the same share of the slots are one thread's.
    const auto first = [&](int share) -> std::int64_t {
        if (share == team) return sequences;
        return std::lower_bound(offsets, offsets + sequences, slots * share / team) - offsets;
    };
#pragma omp parallel for if (team > 1) num_threads(team)
    for (int share = 0; share < team; ++share) walk(columns, offsets, bootstrap, first(share), first(share + 1));
}

template void gae<float>(float*, const float*, float*, const std::int32_t*, const float*, std::int64_t, float, float,
                         int);
template void gae<double>(double*, const double*, double*, const std::int32_t*, const double*, std::int64_t, double,
                          double, int);

}  // namespace rlhf::columns
