// PPO's losses of one slot and their derivatives, with the conventions of torch's autograd: where the arguments of a
// maximum or minimum are equal each gets half of the gradient, clip passes it on within its bounds and on them, and NaN
// comes through.
#pragma once

#include <cmath>

namespace rlhf {

template <typename T>
struct PolicySlot {
    T loss, d_logprob, log_ratio, ratio;
    bool clipped;  // the clipped ratio is the one that counts
};

template <typename T>
struct ValueSlot {
    T loss, d_value;
    bool clipped;
};

template <typename T>
T larger(T a, T b) {
    return a > b || std::isnan(a) ? a : b;
}

template <typename T>
T smaller(T a, T b) {
    return a < b || std::isnan(a) ? a : b;
}

template <typename T>
T clip(T x, T low, T high) {
    return smaller(larger(x, low), high);
}

template <typename T>
bool within(T x, T low, T high) {
    return x >= low && x <= high;
}

// The derivative of larger(a, b) by a; that of smaller(a, b) by a is the share of (b, a).
template <typename T>
T share_of_larger(T a, T b) {
    return a == b ? T(0.5) : a < b ? T(0) : T(1);
}

template <typename T>
PolicySlot<T> policy_slot(T logprob, T old_logprob, T advantage, T low, T high, T dual_clip, T log_ratio_clamp) {
    const T log_ratio = logprob - old_logprob;
    const T ratio = std::exp(clip(log_ratio, -log_ratio_clamp, log_ratio_clamp));
    const T unclipped = -advantage * ratio;
    const T clipped = -advantage * clip(ratio, low, high);
    T loss = larger(unclipped, clipped);
    T d_ratio = -advantage * (share_of_larger(unclipped, clipped) +
                              (within(ratio, low, high) ? share_of_larger(clipped, unclipped) : T(0)));
    if (advantage < 0) {
        const T bound = -advantage * dual_clip;
        d_ratio *= share_of_larger(bound, loss);
        loss = smaller(loss, bound);
    }
    const bool moves = std::isinf(log_ratio_clamp) || within(log_ratio, -log_ratio_clamp, log_ratio_clamp);
    const T d_logprob = moves ? d_ratio * ratio : T(0);
    return {loss, d_logprob, log_ratio, ratio, clipped > unclipped};
}

template <typename T>
ValueSlot<T> value_slot(T value, T old_value, T target, T cliprange) {
    const T error = value - target;
    if (std::isinf(cliprange)) return {T(0.5) * error * error, error, false};
    const T low = old_value - cliprange, high = old_value + cliprange;
    const T near_error = clip(value, low, high) - target;
    const T unclipped = error * error, clipped = near_error * near_error;
    const T d_value = share_of_larger(unclipped, clipped) * error +
                      (within(value, low, high) ? share_of_larger(clipped, unclipped) * near_error : T(0));
    return {T(0.5) * larger(unclipped, clipped), d_value, clipped > unclipped};
}

}  // namespace rlhf
