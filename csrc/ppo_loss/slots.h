// Sums and gradients of PPO's losses over a range of slots, a vector of them at a time: what lies outside the masks is
// computed and then replaced by 0. Sums are taken in float64, lane by lane.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "isa/vectors.h"
#include "ppo_loss/ppo_loss.h"

namespace rlhf::ppo {
namespace {

// The losses of a vector of slots and their derivatives, without branches and with the conventions of torch's autograd:
// where the arguments of a maximum or minimum are equal each gets half of the gradient, clip passes it on within its
// bounds and on them, and NaN comes through. Comparisons of vectors choose lane by lane. Between its bounds clip
// changes nothing, so that the halves of the clipped and the plain loss make a whole.
//
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

template <class Isa>
struct FloatMath : Isa {
    using T = float;
    RLHF_INLINE static typename Isa::F exp(typename Isa::F x) { return exp_of_any<Isa>(x); }
};

template <class Math>
class PPOLanes {
   public:
    using F = typename Math::F;
    using T = typename Math::T;
    using Slots = PPOSlots<Math>;
    static constexpr int kLanes = Math::kLanes;

    explicit PPOLanes(const PPOPass<T>& pass) : pass_(pass) {}

    // Slots [t, t + count), count <= kLanes
    RLHF_INLINE void add(std::int64_t t, int count) {
        policy(t, count);
        value(t, count);
    }

    PPOSums sums() const {
        return {policy_.sum(), entropy_.sum(), clipped_.sum(),      squared_log_ratio_.sum(),
                ratio_.sum(),  value_.sum(),   value_clipped_.sum()};
    }

   private:
    struct Sum {
        typename Math::Sums lanes{};

        RLHF_INLINE void operator+=(F x) { Math::add(lanes, x); }
        double sum() const {
            double each[kLanes], total = 0;
            std::memcpy(each, &lanes, sizeof each);
            for (const double lane : each) total += lane;
            return total;
        }
    };

    RLHF_INLINE static F load(const T* column, int count) {
        if (count == kLanes) return Math::load(column);
        T lanes[kLanes] = {};
        std::copy_n(column, count, lanes);
        return Math::load(lanes);
    }
    RLHF_INLINE static void store(T* column, F x, int count) {
        if (count == kLanes) return Math::store(column, x);
        T lanes[kLanes];
        Math::store(lanes, x);
        std::copy_n(lanes, count, column);
    }
    // Above 0 for slots that count, else 0
    RLHF_INLINE static F counting(const std::uint8_t* mask, std::int64_t t, int count) {
        if (count == kLanes) return mask == nullptr ? Math::set1(1) : Math::from_bytes(mask + t);
        std::uint8_t lanes[kLanes] = {};
        for (int lane = 0; lane < count; ++lane) lanes[lane] = mask == nullptr || mask[t + lane] != 0;
        return Math::from_bytes(lanes);
    }
    RLHF_INLINE static F where(F counts, F x) { return counts > F{} ? x : F{}; }

    RLHF_INLINE void policy(std::int64_t t, int count) {
        const PPOColumns<T>& in = pass_.in;
        const F counts = counting(in.mask, t, count);
        if (in.entropy != nullptr) {
            entropy_ += where(counts, load(in.entropy + t, count));
            store(pass_.out.d_entropy + t, where(counts, Math::set1(pass_.entropy_share)), count);
        }
        const auto slot =
            Slots::policy(load(in.logprobs + t, count), load(in.old_logprobs + t, count),
                          load(in.advantages + t, count), pass_.low, pass_.high, pass_.dual_clip, pass_.clamp);
        const F weight = in.weight == nullptr ? Math::set1(1) : load(in.weight + t, count);
        store(pass_.out.d_logprobs + t, where(counts, slot.d_logprob * weight * Math::set1(pass_.policy_share)), count);
        policy_ += where(counts, slot.loss * weight);
        clipped_ += where(counts, slot.clipped);
        squared_log_ratio_ += where(counts, slot.log_ratio * slot.log_ratio);
        ratio_ += where(counts, slot.ratio);
    }

    RLHF_INLINE void value(std::int64_t t, int count) {
        const PPOColumns<T>& in = pass_.in;
        const F counts = counting(in.value_mask, t, count);
        const auto slot = Slots::value(load(in.values + t, count), load(in.old_values + t, count),
                                       load(in.returns + t, count), pass_.cliprange_value);
        store(pass_.out.d_values + t, where(counts, slot.d_value * Math::set1(pass_.value_share)), count);
        value_ += where(counts, slot.loss);
        value_clipped_ += where(counts, slot.clipped);
    }

    const PPOPass<T>& pass_;
    Sum policy_, entropy_, clipped_, squared_log_ratio_, ratio_, value_, value_clipped_;
};

template <class Math>
RLHF_TARGET PPOSums sums_of_slots(const PPOPass<typename Math::T>& pass, std::int64_t first, std::int64_t last) {
    constexpr int kLanes = Math::kLanes;
    PPOLanes<Math> lanes(pass);
    std::int64_t t = first;
    for (; t + kLanes <= last; t += kLanes) lanes.add(t, kLanes);
    if constexpr (kLanes > 1) {
        if (t < last) lanes.add(t, static_cast<int>(last - t));
    }
    return lanes.sums();
}

}  // namespace
}  // namespace rlhf::ppo
