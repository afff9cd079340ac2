// The part of ppo_loss that is compiled once per instruction set: the sums and gradients of a range of slots.
// simd/ppo_loss.h implements it.
#pragma once

#include <cstdint>

#include "isa/level.h"
#include "ppo_loss/ppo_loss.h"

namespace rlhf {

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

// Sums over the slots [first, last), whose gradients are written. Order and rounding do not depend on the caller.
namespace portable {
PPOSums ppo_sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last);
}
#if RLHF_X86
namespace avx2 {
PPOSums ppo_sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last);
}
namespace avx512bf16 {
PPOSums ppo_sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last);
}
#endif

}  // namespace rlhf
