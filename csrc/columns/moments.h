// Count, mean and sum of squared deviations in float64, in two passes.
#pragma once

#include <cstdint>

namespace rlhf {

struct Moments {
    double count, mean, m2;
};

// Of the entries of x (entries,) where the byte of `mask` (entries,) is not 0, or of all where mask is nullptr; entries
// outside the mask may be NaN. Of no entries all three are 0.
// At most `threads` threads run, fewer where x is too short to be worth it; the result does not depend on them.
template <typename T>
Moments moments(const T* x, const std::uint8_t* mask, std::int64_t entries, int threads);

extern template Moments moments<float>(const float*, const std::uint8_t*, std::int64_t, int);
extern template Moments moments<double>(const double*, const std::uint8_t*, std::int64_t, int);

}  // namespace rlhf
