#include "ppo_loss/ppo_loss.h"

#include <algorithm>

#include "check.h"
#include "isa/kernels.h"

namespace ppo = rlhf::ppo;

namespace {

constexpr double kClip = 0.2, kClipValue = 0.3, kVfCoef = 0.5, kEntropyCoef = 0.1, kDualClip = 1.5, kClamp = 0.6;

double clip(double x, double low, double high) { return std::min(std::max(x, low), high); }

struct Slot {
    double loss = 0, gradient = 0;
};

Slot policy(double log_ratio, double a) {
    const double ratio = std::exp(clip(log_ratio, -kClamp, kClamp));
    const double plain = -a * ratio, clipped = -a * clip(ratio, 1 - kClip, 1 + kClip), most = -a * kDualClip;
    const bool bounded = a < 0 && std::max(plain, clipped) > most;
    const bool moves = std::abs(log_ratio) < kClamp && plain >= clipped && !bounded;
    return {bounded ? most : std::max(plain, clipped), moves ? plain : 0};
}

Slot value(double v, double old, double target) {
    const double near = clip(v, old - kClipValue, old + kClipValue);
    const double plain = (v - target) * (v - target), clipped = (near - target) * (near - target);
    return {0.5 * std::max(plain, clipped), plain >= clipped ? v - target : 0};
}

template <typename T>
void check_ppo_loss(std::int64_t slots, bool optional, const rlhf::Kernels& level) {
    auto logprobs = normal<T>(slots);
    const auto old_logprobs = logprobs;
    const auto advantages = normal<T>(slots), values = normal<T>(slots), old_values = normal<T>(slots);
    const auto returns = normal<T>(slots), entropy = normal<T>(slots), weight = normal<T>(slots);
    const auto change = normal<T>(slots);
    for (std::size_t t = 0; t < change.size(); ++t) logprobs[t] += T(0.4) * change[t];
    const auto mask = random_mask(slots), value_mask = random_mask(slots);
    std::vector<T> metrics(8), d_logprobs(mask.size()), d_values(mask.size()), d_entropy(optional ? mask.size() : 0);
    const auto given = [=](const auto& column) { return optional ? column.data() : nullptr; };
    const double value_denominator = 3;
    ppo::ppo_loss<T>({logprobs.data(), old_logprobs.data(), advantages.data(), values.data(), old_values.data(),
                      returns.data(), given(entropy), given(weight), given(mask), given(value_mask), slots},
                     {kClip, kClipValue, kVfCoef, kEntropyCoef, kDualClip, kClamp, nullptr, &value_denominator},
                     {metrics.data(), d_logprobs.data(), d_values.data(), d_entropy.data()}, level, 2);

    double count = 0, policy_loss = 0, value_loss = 0, entropy_sum = 0;
    for (std::size_t t = 0; t < mask.size(); ++t) count += !optional || mask[t];
    count = std::max(count, 1.0);
    for (std::size_t t = 0; t < mask.size(); ++t) {
        const bool counts = !optional || mask[t], value_counts = !optional || value_mask[t];
        const double w = optional ? weight[t] : 1;
        const Slot p = counts ? policy(T(logprobs[t] - old_logprobs[t]), advantages[t]) : Slot{};
        const Slot v = value_counts ? value(values[t], old_values[t], returns[t]) : Slot{};
        policy_loss += p.loss * w / count;
        value_loss += v.loss / value_denominator;
        expect_near<T>("d_logprobs", d_logprobs[t], p.gradient * w / count);
        expect_near<T>("d_values", d_values[t], kVfCoef * v.gradient / value_denominator);
        if (!optional) continue;
        entropy_sum += counts ? entropy[t] / count : 0;
        expect_near<T>("d_entropy", d_entropy[t], counts ? -kEntropyCoef / count : 0);
    }
    expect_near<T>("policy loss", metrics[1], policy_loss);
    expect_near<T>("value loss", metrics[2], value_loss);
    expect_near<T>("entropy", metrics[3], entropy_sum);
    expect_near<T>("loss", metrics[0], policy_loss + kVfCoef * value_loss - kEntropyCoef * entropy_sum);
}

}  // namespace

void check_ppo_loss() {
    for (const std::int64_t slots : {0, 1, 2, 7, 33, 4097, 9001}) {
        for (const bool optional : {false, true}) {
            for (const rlhf::Kernels* level : rlhf::available_kernels()) {
                check_ppo_loss<float>(slots, optional, *level);
            }
            check_ppo_loss<double>(slots, optional, rlhf::portable::kernels());
        }
    }
}
