#include "columns/shaping.h"

#include "columns/chunks.h"

namespace rlhf {
namespace {

constexpr std::int64_t kSlotsPerThread = 65536;  // some 10 microseconds of work: less is not worth waking a thread

}  // namespace

template <typename T>
void shape_rewards(T* rewards, const T* kl, std::int64_t slots, const T* scores, const std::int64_t* score_index,
                   std::int64_t sequences, T kl_coef, int threads) {
    const int team = useful_team(slots, kSlotsPerThread, threads);
    for_each_chunk(slots, team, [=](std::int64_t, std::int64_t first, std::int64_t last) {
        for (std::int64_t t = first; t < last; ++t) rewards[t] = -kl_coef * kl[t];
    });
    for (std::int64_t b = 0; b < sequences; ++b) {
        if (score_index[b] >= 0) rewards[score_index[b]] += scores[b];
    }
}

template void shape_rewards<float>(float*, const float*, std::int64_t, const float*, const std::int64_t*, std::int64_t,
                                   float, int);
template void shape_rewards<double>(double*, const double*, std::int64_t, const double*, const std::int64_t*,
                                    std::int64_t, double, int);

}  // namespace rlhf
