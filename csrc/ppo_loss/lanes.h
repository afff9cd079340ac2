// Sums and gradients of PPO's losses over a range of slots, a vector of them at a time: what lies outside the masks is
// computed and then replaced by 0. Sums are taken in float64, lane by lane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ppo_loss/pass.h"
#include "isa/math.h"
#include "ppo_loss/slot.h"

namespace rlhf {
namespace {

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
}  // namespace rlhf
