#include "decode/kernels.h"

namespace rlhf {

const DecodeKernels& decode_kernels([[maybe_unused]] Level level, Element element) {
#if RLHF_AMX
    if (level == Level::kAmx) return amx::decode_kernels(element);
#endif
#if RLHF_X86
    if (level == Level::kAvx512Bf16) return avx512bf16::decode_kernels(element);
    if (level == Level::kAvx2) return avx2::decode_kernels(element);
#endif
    return portable::decode_kernels(element);
}

}  // namespace rlhf
