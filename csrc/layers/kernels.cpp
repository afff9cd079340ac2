#include "layers/kernels.h"

namespace rlhf {

const LayerKernels& layer_kernels([[maybe_unused]] Level level, Element element) {
#if RLHF_AMX
    if (level == Level::kAmx) return amx::layer_kernels(element);
#endif
#if RLHF_X86
    if (level == Level::kAvx512Bf16) return avx512bf16::layer_kernels(element);
    if (level == Level::kAvx2) return avx2::layer_kernels(element);
#endif
    return portable::layer_kernels(element);
}

}  // namespace rlhf
