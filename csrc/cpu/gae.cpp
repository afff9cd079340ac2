#include "gae.h"

#include <algorithm>

namespace rlhf {
namespace {

constexpr std::int64_t kSlotsPerThread = 8192;  // some 20 microseconds of work: less is not worth waking a thread

template <typename T>
void one_sequence(T* rewards, const T* values, T* returns, std::int64_t start, std::int64_t stop, T beyond, T gamma,
                  T gamma_lam) {
    T next_value = beyond;
    T next_advantage = 0;
    for (std::int64_t t = stop - 1; t >= start; --t) {
        const T value = values[t];
        const T delta = rewards[t] + gamma * next_value - value;
        next_advantage = delta + gamma_lam * next_advantage;
        next_value = value;
        rewards[t] = next_advantage;
        returns[t] = next_advantage + value;
    }
}

}  // namespace

template <typename T>
void gae(T* rewards, const T* values, T* returns, const std::int32_t* cu, const T* bootstrap,
         std::int64_t sequences, T gamma, T gamma_lam, int threads) {
    const std::int64_t useful = std::min<std::int64_t>(sequences, 1 + cu[sequences] / kSlotsPerThread);
    [[maybe_unused]] const int team = static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
#pragma omp parallel for schedule(dynamic) num_threads(team)
    for (std::int64_t b = 0; b < sequences; ++b) {
        const T beyond = bootstrap == nullptr ? T(0) : bootstrap[b];
        one_sequence(rewards, values, returns, cu[b], cu[b + 1], beyond, gamma, gamma_lam);
    }
}

template void gae<float>(float*, const float*, float*, const std::int32_t*, const float*, std::int64_t, float, float,
                         int);
template void gae<double>(double*, const double*, double*, const std::int32_t*, const double*, std::int64_t, double,
                          double, int);

}  // namespace rlhf
