#include "isa/portable.h"

#include "logprobs/kernels.h"
#include "ppo_loss/lanes.h"
#include "logprobs/tables.h"

namespace rlhf::portable {
const RowKernels& row_kernels(Element element) {
    static constexpr RowKernels bf16 = kernels_of<FloatProduct<Portable>, std::uint16_t>;
    static constexpr RowKernels fp32 = kernels_of<FloatProduct<Portable>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}

PPOSums ppo_sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last) {
    return sums_of_slots<FloatMath<Portable>>(pass, first, last);
}
}  // namespace rlhf::portable
