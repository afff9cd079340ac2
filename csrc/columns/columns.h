// What PPO computes on flat columns, a slot for each response token: rewards, advantages and returns, and whitening.
// Everywhere at most `threads` threads run, fewer where the columns are too short to be worth it; results do not depend
// on them.
#pragma once

#include <cstdint>

namespace rlhf::columns {

// Rewards per response slot: -kl_coef kl_t, plus a sequence's score at its score position (Ziegler et al. 2019).
// rewards (written), kl: (slots,); scores: (sequences,); score_index: (sequences,) slots of distinct sequences in
// [0, slots), negative for a score that lands nowhere.
template <typename T>
void shape_rewards(T* rewards, const T* kl, std::int64_t slots, const T* scores, const std::int64_t* score_index,
                   std::int64_t sequences, T kl_coef, int threads);

extern template void shape_rewards<float>(float*, const float*, std::int64_t, const float*, const std::int64_t*,
                                          std::int64_t, float, int);
extern template void shape_rewards<double>(double*, const double*, std::int64_t, const double*, const std::int64_t*,
                                           std::int64_t, double, int);

// Generalised advantage estimation over flat columns (Schulman et al. 2016):
//   d_t = r_t + gamma V_{t+1} - V_t,  A_t = d_t + gamma lam A_{t+1},  return_t = A_t + V_t
// rewards, values, returns: (T,); offsets: (sequences + 1,) offsets into them, from 0 to T, never falling.
// bootstrap: (sequences,) values beyond each end, or nullptr for 0.
// rewards become advantages, returns are written, nothing else is. The columns do not overlap.
template <typename T>
void gae(T* rewards, const T* values, T* returns, const std::int32_t* offsets, const T* bootstrap,
         std::int64_t sequences, T gamma, T gamma_lam, int threads);

extern template void gae<float>(float*, const float*, float*, const std::int32_t*, const float*, std::int64_t, float,
                                float, int);
extern template void gae<double>(double*, const double*, double*, const std::int32_t*, const double*, std::int64_t,
                                 double, double, int);

// Count, mean and sum of squared deviations in float64, in two passes.
struct Moments {
    double count, mean, m2;
};

// Of the entries of x (entries,) where the byte of `mask` (entries,) is not 0, or of all where mask is nullptr; entries
// outside the mask may be NaN. Of no entries all three are 0.
template <typename T>
Moments moments(const T* x, const std::uint8_t* mask, std::int64_t entries, int threads);

extern template Moments moments<float>(const float*, const std::uint8_t*, std::int64_t, int);
extern template Moments moments<double>(const double*, const std::uint8_t*, std::int64_t, int);

// Whitening in place: (x - mean) / sqrt(m2 / (count - ddof) + eps).
struct Whitening {
    bool shift_mean;  // false: the mean is added back
    std::int64_t ddof;
    double eps;
};

// The entries of x (entries,) where the byte of `mask` (entries,) is not 0, or all where mask is nullptr; with
// moments.count <= ddof, none.
template <typename T>
void whiten(T* x, const std::uint8_t* mask, std::int64_t entries, const Moments& moments, const Whitening& whitening,
            int threads);

extern template void whiten<float>(float*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);
extern template void whiten<double>(double*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);

}  // namespace rlhf::columns
