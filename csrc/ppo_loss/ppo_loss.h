// PPO's clipped losses (Schulman et al. 2017), their metrics and their gradients, in one pass over flat columns:
//   policy  max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange)) w, for A < 0 at most -A dual_clip w
//   value   0.5 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), c = cliprange_value
//   loss    policy + vf_coef value - entropy_coef entropy, each a mean over its mask
// with rho = exp(clip(log p - log p_old, -log_ratio_clamp, log_ratio_clamp)).
#pragma once

#include <cstdint>

#include "common.h"

namespace rlhf::ppo {

template <typename T>
struct PPOColumns {  // each (slots,)
    const T *logprobs, *old_logprobs, *advantages, *values, *old_values, *returns;
    const T *entropy, *weight;              // nullptr: none
    const std::uint8_t *mask, *value_mask;  // slots whose byte is not 0 count; nullptr: all, for values those of mask
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
// `kernels` are those of float columns; those of double need none.
// At most `threads` threads run, fewer where the columns are too short to be worth it; results do not depend on them.
template <typename T>
void ppo_loss(const PPOColumns<T>& columns, const PPOSettings& settings, const PPOResults<T>& results,
              const Kernels& kernels, int threads);

extern template void ppo_loss<float>(const PPOColumns<float>&, const PPOSettings&, const PPOResults<float>&,
                                     const Kernels&, int);
extern template void ppo_loss<double>(const PPOColumns<double>&, const PPOSettings&, const PPOResults<double>&,
                                      const Kernels&, int);

// The part that is compiled for each instruction set (slots.h): the sums over a range of slots, whose gradients are
// written. Order and rounding do not depend on the caller.
struct PPOSums {
    double policy = 0, entropy = 0, clipped = 0, squared_log_ratio = 0, ratio = 0;
    double value = 0, value_clipped = 0;
};

template <typename T>
struct PPOPass {
    PPOColumns<T> in;  // value_mask as it is to be read: nullptr counts all
    PPOResults<T> out;
    T low, high, dual_clip, clamp, cliprange_value;
    T policy_share, value_share, entropy_share;  // what multiplies the derivatives of a slot
};

}  // namespace rlhf::ppo
