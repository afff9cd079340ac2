// Generalised advantage estimation over flat columns (Schulman et al. 2016):
//   d_t = r_t + gamma V_{t+1} - V_t,  A_t = d_t + gamma lam A_{t+1},  return_t = A_t + V_t
#pragma once

#include <cstdint>

namespace rlhf {

// rewards, values, returns: (T,); cu: (sequences + 1,) offsets into them, from 0 to T, never falling.
// bootstrap: (sequences,) values beyond each end, or nullptr for 0.
// rewards become advantages, returns are written, nothing else is. The columns do not overlap.
// At most `threads` threads run, fewer where the columns are too short to be worth it; results do not depend on them.
template <typename T>
void gae(T* rewards, const T* values, T* returns, const std::int32_t* cu, const T* bootstrap,
         std::int64_t sequences, T gamma, T gamma_lam, int threads);

extern template void gae<float>(float*, const float*, float*, const std::int32_t*, const float*, std::int64_t, float,
                                float, int);
extern template void gae<double>(double*, const double*, double*, const std::int32_t*, const double*, std::int64_t,
                                 double, double, int);

}  // namespace rlhf
