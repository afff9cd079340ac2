#include "row_kernels.h"

namespace rlhf {

bool level_available(Level level) {
    if (level == Level::kPortable) return true;
#if RLHF_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == Level::kAvx2) return avx2;
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}

const RowKernels& row_kernels([[maybe_unused]] Level level, Element element) {
#if RLHF_X86
    if (level == Level::kAvx512Bf16) return avx512bf16::row_kernels(element);
    if (level == Level::kAvx2) return avx2::row_kernels(element);
#endif
    return portable::row_kernels(element);
}

}  // namespace rlhf
