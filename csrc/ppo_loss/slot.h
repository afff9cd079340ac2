// PPO's losses of a vector of slots and their derivatives, without branches and with the conventions of torch's autograd:
// where the arguments of a maximum or minimum are equal each gets half of the gradient, clip passes it on within its
// bounds and on them, and NaN comes through. Comparisons of vectors choose lane by lane. Between its bounds clip changes
// nothing, so that the halves of the clipped and the plain loss make a whole.
#pragma once

#include <cmath>

#include "isa/target.h"

namespace rlhf {
namespace {

// Math: `F`, a vector of `T`, with set1, exp, and max and min that give their second argument where one is NaN
template <class Math>
struct PPOSlots {
    using F = typename Math::F;
    using T = typename Math::T;

    struct Policy {
        F loss, d_logprob, log_ratio, ratio;
        F clipped;  // 1 where the clipped ratio is the one that counts, else 0
    };

    struct Value {
        F loss, d_value, clipped;
    };

    RLHF_INLINE static Policy policy(F logprob, F old_logprob, F advantage, T low, T high, T dual_clip, T clamp) {
        const F least = Math::set1(low), most = Math::set1(high), bound = Math::set1(clamp);
        const F log_ratio = logprob - old_logprob;
        const F ratio = Math::exp(clip(log_ratio, -bound, bound));
        const F unclipped = -advantage * ratio;
        const F clipped = -advantage * clip(ratio, least, most);
        F loss = Math::max(clipped, unclipped);  // the clipped one is NaN only where the other is
        F d_logprob = unclipped * within(ratio, least, most, Math::set1(1), share_of_larger(unclipped, clipped));
        if (!std::isinf(dual_clip)) {
            const F worst = -advantage * Math::set1(dual_clip);
            d_logprob = advantage < F{} ? d_logprob * share_of_larger(worst, loss) : d_logprob;
            loss = advantage < F{} ? Math::min(worst, loss) : loss;
        }
        if (!std::isinf(clamp)) d_logprob = within(log_ratio, -bound, bound, d_logprob, F{});
        return {loss, d_logprob, log_ratio, ratio, exceeds(clipped, unclipped)};
    }

    RLHF_INLINE static Value value(F value, F old_value, F target, T cliprange) {
        const F half = Math::set1(T(0.5)), error = value - target;
        if (std::isinf(cliprange)) return {half * error * error, error, F{}};
        const F low = old_value - Math::set1(cliprange), high = old_value + Math::set1(cliprange);
        const F near_error = Math::min(Math::max(value, low), high) - target;  // NaN where the old value is
        const F unclipped = error * error, clipped = near_error * near_error;
        const F worse = unclipped == unclipped ? Math::max(unclipped, clipped) : unclipped;
        const F d_value = error * within(value, low, high, Math::set1(1), share_of_larger(unclipped, clipped));
        return {half * worse, d_value, exceeds(clipped, unclipped)};
    }

   private:
    // For bounds that are not NaN
    RLHF_INLINE static F clip(F x, F low, F high) { return Math::min(high, Math::max(low, x)); }

    RLHF_INLINE static F within(F x, F low, F high, F inside, F outside) {
        return x >= low ? (x <= high ? inside : outside) : outside;
    }

    // The derivative of the larger of a and b by a, and of the smaller by b
    RLHF_INLINE static F share_of_larger(F a, F b) {
        return a == b ? Math::set1(T(0.5)) : (a < b ? F{} : Math::set1(1));
    }

    RLHF_INLINE static F exceeds(F a, F b) { return a > b ? Math::set1(1) : F{}; }
};

}  // namespace
}  // namespace rlhf
