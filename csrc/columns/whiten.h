// Whitening in place: (x - mean) / sqrt(m2 / (count - ddof) + eps).
#pragma once

#include <cstdint>

#include "columns/moments.h"

namespace rlhf {

struct Whitening {
    bool shift_mean;  // false: the mean is added back
    std::int64_t ddof;
    double eps;
};

// The entries of x (entries,) where the byte of `mask` (entries,) is not 0, or all where mask is nullptr; with
// moments.count <= ddof, none. At most `threads` threads run, fewer where x is too short to be worth it.
template <typename T>
void whiten(T* x, const std::uint8_t* mask, std::int64_t entries, const Moments& moments, const Whitening& whitening,
            int threads);

extern template void whiten<float>(float*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);
extern template void whiten<double>(double*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);

}  // namespace rlhf
