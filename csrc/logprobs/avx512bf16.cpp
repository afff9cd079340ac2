#include "logprobs/kernels.h"

#if RLHF_X86
#include "isa/avx512bf16.h"
#include "ppo_loss/lanes.h"
#include "logprobs/tables.h"

namespace rlhf::avx512bf16 {
const RowKernels& row_kernels(Element element) {
    static constexpr RowKernels bf16 = kernels_of<PairProduct, std::uint16_t>;
    static constexpr RowKernels fp32 = kernels_of<FloatProduct<Avx512>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}

PPOSums ppo_sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last) {
    return sums_of_slots<FloatMath<Avx512>>(pass, first, last);
}
}  // namespace rlhf::avx512bf16
#endif
