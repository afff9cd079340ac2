#include "ppo_loss.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "chunks.h"
#include "ppo_loss_slot.h"

namespace rlhf {
namespace {

constexpr std::int64_t kSlotsPerThread = 4096;  // some 20 microseconds of work: less is not worth waking a thread

struct Sums {
    double policy = 0, entropy = 0, clipped = 0, squared_log_ratio = 0, ratio = 0;
    double value = 0, value_clipped = 0;

    void operator+=(const Sums& other) {
        policy += other.policy;
        entropy += other.entropy;
        clipped += other.clipped;
        squared_log_ratio += other.squared_log_ratio;
        ratio += other.ratio;
        value += other.value;
        value_clipped += other.value_clipped;
    }
};

double count(const std::uint8_t* mask, std::int64_t slots) {
    if (mask == nullptr) return static_cast<double>(slots);
    return static_cast<double>(slots - std::count(mask, mask + slots, 0));
}

double denominator(const double* given, const std::uint8_t* mask, std::int64_t slots) {
    return given != nullptr ? *given : std::max(count(mask, slots), 1.0);
}

template <typename T>
class Pass {
   public:
    Pass(const PPOColumns<T>& columns, const PPOSettings& settings, const PPOResults<T>& results)
        : in_(columns), settings_(settings), out_(results),
          value_mask_(columns.value_mask != nullptr ? columns.value_mask : columns.mask),
          denominator_(denominator(settings.denominator, columns.mask, columns.slots)),
          value_denominator_(denominator(settings.value_denominator, value_mask_, columns.slots)) {}

    // Writes the gradients of slots [first, last).
    Sums run(std::int64_t first, std::int64_t last) const {
        Sums sums;
        for (std::int64_t t = first; t < last; ++t) {
            policy(t, sums);
            value(t, sums);
        }
        return sums;
    }

    void write_metrics(const Sums& sums) const {
        const double policy = sums.policy / denominator_, entropy = sums.entropy / denominator_;
        const double value = sums.value / value_denominator_;
        double loss = policy + settings_.vf_coef * value;
        if (in_.entropy != nullptr) loss -= settings_.entropy_coef * entropy;
        const double metrics[] = {loss,
                                  policy,
                                  value,
                                  entropy,
                                  sums.clipped / denominator_,
                                  sums.value_clipped / value_denominator_,
                                  0.5 * sums.squared_log_ratio / denominator_,
                                  sums.ratio / denominator_};
        std::copy(std::begin(metrics), std::end(metrics), out_.metrics);
    }

   private:
    void policy(std::int64_t t, Sums& sums) const {
        const bool counts = in_.mask == nullptr || in_.mask[t] != 0;
        if (in_.entropy != nullptr) {
            out_.d_entropy[t] = counts ? static_cast<T>(-settings_.entropy_coef / denominator_) : T(0);
            if (counts) sums.entropy += in_.entropy[t];
        }
        out_.d_logprobs[t] = 0;
        if (!counts) return;
        const PolicySlot<T> slot =
            policy_slot(in_.logprobs[t], in_.old_logprobs[t], in_.advantages[t], low_, high_, dual_clip_, clamp_);
        const double weight = in_.weight == nullptr ? 1.0 : in_.weight[t];
        out_.d_logprobs[t] = static_cast<T>(slot.d_logprob * weight / denominator_);
        sums.policy += slot.loss * weight;
        sums.clipped += slot.clipped;
        sums.squared_log_ratio += static_cast<double>(slot.log_ratio) * slot.log_ratio;
        sums.ratio += slot.ratio;
    }

    void value(std::int64_t t, Sums& sums) const {
        out_.d_values[t] = 0;
        if (value_mask_ != nullptr && value_mask_[t] == 0) return;
        const ValueSlot<T> slot = value_slot(in_.values[t], in_.old_values[t], in_.returns[t], cliprange_value_);
        out_.d_values[t] = static_cast<T>(settings_.vf_coef * slot.d_value / value_denominator_);
        sums.value += slot.loss;
        sums.value_clipped += slot.clipped;
    }

    const PPOColumns<T>& in_;
    const PPOSettings& settings_;
    const PPOResults<T>& out_;
    const std::uint8_t* value_mask_;
    const double denominator_, value_denominator_;
    const T low_ = static_cast<T>(1 - settings_.cliprange), high_ = static_cast<T>(1 + settings_.cliprange);
    const T dual_clip_ = static_cast<T>(settings_.dual_clip), clamp_ = static_cast<T>(settings_.log_ratio_clamp);
    const T cliprange_value_ = static_cast<T>(settings_.cliprange_value);
};

}  // namespace

template <typename T>
void ppo_loss(const PPOColumns<T>& columns, const PPOSettings& settings, const PPOResults<T>& results, int threads) {
    const Pass<T> pass(columns, settings, results);
    std::vector<Sums> parts(static_cast<std::size_t>(chunks(columns.slots)));
    const int team = useful_team(columns.slots, kSlotsPerThread, threads);
    for_each_chunk(columns.slots, team, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
        parts[static_cast<std::size_t>(chunk)] = pass.run(first, last);
    });
    Sums total;
    for (const Sums& part : parts) total += part;
    pass.write_metrics(total);
}

template void ppo_loss<float>(const PPOColumns<float>&, const PPOSettings&, const PPOResults<float>&, int);
template void ppo_loss<double>(const PPOColumns<double>&, const PPOSettings&, const PPOResults<double>&, int);

}  // namespace rlhf
