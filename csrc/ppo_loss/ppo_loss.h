// PPO's clipped losses (Schulman et al. 2017), their metrics and their gradients, in one pass over flat columns:
//   policy  max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange)) w, for A < 0 at most -A dual_clip w
//   value   0.5 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), c = cliprange_value
//   loss    policy + vf_coef value - entropy_coef entropy, each a mean over its mask
// with rho = exp(clip(log p - log p_old, -log_ratio_clamp, log_ratio_clamp)).
#pragma once

#include <cstdint>

#include "isa/level.h"

namespace rlhf {

template <typename T>
struct PPOColumns {  // each (slots,)
    const T *logprobs, *old_logprobs, *advantages, *values, *old_values, *returns;
    const T *entropy, *weight;              // nullptr: none
    const std::uint8_t *mask, *value_mask;  // slots whose byte is not 0 count; nullptr: all, and for values those of mask
    std::int64_t slots;
};

struct PPOSettings {
    double cliprange, cliprange_value, vf_coef, entropy_coef, dual_clip, log_ratio_clamp;  // infinite: no such clip
    const double *denominator, *value_denominator;  // nullptr: the number of slots of the mask, at least 1
};

// metrics (8,): loss, policy loss, value loss, entropy, clip fraction, value clip fraction, approximate KL, mean ratio.
// Gradients of the loss, each (slots,), 0 outside the masks; d_entropy is written where there is an entropy column.
template <typename T>
struct PPOResults {
    T *metrics, *d_logprobs, *d_values, *d_entropy;
};

// What columns hold outside the masks plays no part. Slots are computed in T, sums in float64. Where arguments of a
// maximum are equal each gets half of the gradient, and a bound of a clip passes it on, as in torch.
// `level` is the instruction set of float columns; those of double need none.
// At most `threads` threads run, fewer where the columns are too short to be worth it; results do not depend on them.
template <typename T>
void ppo_loss(const PPOColumns<T>& columns, const PPOSettings& settings, const PPOResults<T>& results, Level level,
              int threads);

extern template void ppo_loss<float>(const PPOColumns<float>&, const PPOSettings&, const PPOResults<float>&, Level,
                                     int);
extern template void ppo_loss<double>(const PPOColumns<double>&, const PPOSettings&, const PPOResults<double>&, Level,
                                      int);

}  // namespace rlhf
