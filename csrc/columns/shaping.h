// Rewards per response slot: -kl_coef kl_t, plus a sequence's score at its score position (Ziegler et al. 2019).
#pragma once

#include <cstdint>

namespace rlhf {

// rewards (written), kl: (slots,); scores: (sequences,); score_index: (sequences,) slots of distinct sequences in
// [0, slots), negative for a score that lands nowhere.
// At most `threads` threads run, fewer where the columns are too short to be worth it; results do not depend on them.
template <typename T>
void shape_rewards(T* rewards, const T* kl, std::int64_t slots, const T* scores, const std::int64_t* score_index,
                   std::int64_t sequences, T kl_coef, int threads);

extern template void shape_rewards<float>(float*, const float*, std::int64_t, const float*, const std::int64_t*,
                                          std::int64_t, float, int);
extern template void shape_rewards<double>(double*, const double*, std::int64_t, const double*, const std::int64_t*,
                                           std::int64_t, double, int);

}  // namespace rlhf
