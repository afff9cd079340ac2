#include "ppo_loss/ppo_loss.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "columns/chunks.h"
#include "isa/kernels.h"

#define RLHF_TARGET
#include "ppo_loss/slots.h"

namespace rlhf::ppo {
namespace {

template <typename T>
constexpr std::int64_t kSlotsPerThread = sizeof(T) == 4 ? 8192 : 4096;  // less is not worth waking a thread

double count(const std::uint8_t* mask, std::int64_t slots) {
    if (mask == nullptr) return static_cast<double>(slots);
    return static_cast<double>(slots - std::count(mask, mask + slots, 0));
}

double denominator(const double* given, const std::uint8_t* mask, std::int64_t slots) {
    return given != nullptr ? *given : std::max(count(mask, slots), 1.0);
}

struct Denominators {
    double policy, value;
};

template <typename T>
PPOPass<T> make_pass(PPOColumns<T> columns, const PPOSettings& s, const PPOResults<T>& results, Denominators counts) {
    return {columns,
            results,
            static_cast<T>(1 - s.cliprange),
            static_cast<T>(1 + s.cliprange),
            static_cast<T>(s.dual_clip),
            static_cast<T>(s.log_ratio_clamp),
            static_cast<T>(s.cliprange_value),
            static_cast<T>(1 / counts.policy),
            static_cast<T>(s.vf_coef / counts.value),
            static_cast<T>(-s.entropy_coef / counts.policy)};
}

// One lane of float64
struct DoubleMath {
    using F = double;
    using T = double;
    using Sums = double;
    static constexpr int kLanes = 1;

    static F load(const T* p) { return *p; }
    static void store(T* p, F x) { *p = x; }
    static F set1(T x) { return x; }
    static F from_bytes(const std::uint8_t* p) { return *p; }
    static void add(Sums& sum, F x) { sum += x; }
    static F max(F a, F b) { return a > b ? a : b; }
    static F min(F a, F b) { return a < b ? a : b; }
    static F exp(F x) { return std::exp(x); }
};

PPOSums sums(const PPOPass<double>& pass, std::int64_t first, std::int64_t last, const Kernels&) {
    return sums_of_slots<DoubleMath>(pass, first, last);
}

PPOSums sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last, const Kernels& kernels) {
    return kernels.ppo_sums(pass, first, last);
}

void operator+=(PPOSums& total, const PPOSums& part) {
    total.policy += part.policy;
    total.entropy += part.entropy;
    total.clipped += part.clipped;
    total.squared_log_ratio += part.squared_log_ratio;
    total.ratio += part.ratio;
    total.value += part.value;
    total.value_clipped += part.value_clipped;
}

template <typename T>
void write_metrics(const PPOSums& sums, const PPOSettings& settings, Denominators counts, T* out) {
    const double policy = sums.policy / counts.policy, entropy = sums.entropy / counts.policy;
    const double value = sums.value / counts.value;
    const double loss = policy + settings.vf_coef * value - settings.entropy_coef * entropy;
    const double metrics[] = {loss,
                              policy,
                              value,
                              entropy,
                              sums.clipped / counts.policy,
                              sums.value_clipped / counts.value,
                              0.5 * sums.squared_log_ratio / counts.policy,
                              sums.ratio / counts.policy};
    std::copy(std::begin(metrics), std::end(metrics), out);
}

}  // namespace

template <typename T>
void ppo_loss(const PPOColumns<T>& given, const PPOSettings& settings, const PPOResults<T>& results,
              const Kernels& kernels, int threads) {
    PPOColumns<T> columns = given;
    if (columns.value_mask == nullptr) columns.value_mask = columns.mask;
    const Denominators counts{denominator(settings.denominator, columns.mask, columns.slots),
                              denominator(settings.value_denominator, columns.value_mask, columns.slots)};
    const PPOPass<T> pass = make_pass(columns, settings, results, counts);
    std::vector<PPOSums> parts(static_cast<std::size_t>(rlhf::columns::chunks(columns.slots)));
    const int team = useful_team(columns.slots, kSlotsPerThread<T>, threads);
    rlhf::columns::for_each_chunk(columns.slots, team, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
        parts[static_cast<std::size_t>(chunk)] = sums(pass, first, last, kernels);
    });
    PPOSums total;
    for (const PPOSums& part : parts) total += part;
    write_metrics(total, settings, counts, results.metrics);
}

template void ppo_loss<float>(const PPOColumns<float>&, const PPOSettings&, const PPOResults<float>&, const Kernels&,
                              int);
template void ppo_loss<double>(const PPOColumns<double>&, const PPOSettings&, const PPOResults<double>&, const Kernels&,
                               int);

}  // namespace rlhf::ppo
