#include "logprobs/kernels.h"

namespace rlhf {

const RowKernels& row_kernels([[maybe_unused]] Level level, Element element) {
#if RLHF_AMX
    if (level == Level::kAmx) return amx::row_kernels(element);
#endif
#if RLHF_X86
    if (level == Level::kAvx512Bf16) return avx512bf16::row_kernels(element);
    if (level == Level::kAvx2) return avx2::row_kernels(element);
#endif
    return portable::row_kernels(element);
}

}  // namespace rlhf
