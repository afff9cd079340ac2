#include "columns/whiten.h"

#include <algorithm>
#include <cmath>

#include "columns/chunks.h"

namespace rlhf {
namespace {

constexpr std::int64_t kEntriesPerThread = 32768;  // some 10 microseconds of work: less is not worth waking a thread

}  // namespace

template <typename T>
void whiten(T* x, const std::uint8_t* mask, std::int64_t entries, const Moments& moments, const Whitening& whitening,
            int threads) {
    const double freedom = moments.count - static_cast<double>(whitening.ddof);
    if (!(freedom > 0)) return;
    const double mean = moments.mean, shift = whitening.shift_mean ? 0.0 : mean;
    const double scale = 1 / std::sqrt(moments.m2 / std::max(freedom, 1.0) + whitening.eps);
    const auto whitened = [=](T entry) { return static_cast<T>((entry - mean) * scale + shift); };
    const int team = useful_team(entries, kEntriesPerThread, threads);
    for_each_chunk(entries, team, [=](std::int64_t, std::int64_t first, std::int64_t last) {
        if (mask == nullptr) {
            for (std::int64_t i = first; i < last; ++i) x[i] = whitened(x[i]);
        } else {
            for (std::int64_t i = first; i < last; ++i) x[i] = mask[i] != 0 ? whitened(x[i]) : x[i];
        }
    });
}

template void whiten<float>(float*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);
template void whiten<double>(double*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);

}  // namespace rlhf
