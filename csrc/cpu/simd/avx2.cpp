#include "../row_kernels.h"

#if RLHF_X86
#include "isa_avx2.h"
#include "tasks.h"

namespace rlhf::avx2 {
const RowKernels& row_kernels(Element element) {
    static constexpr RowKernels bf16 = kernels_of<FloatProduct<Avx2>, std::uint16_t>;
    static constexpr RowKernels fp32 = kernels_of<FloatProduct<Avx2>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}
}  // namespace rlhf::avx2
#endif
