#include "decode/kernels.h"

#if RLHF_X86
#include "isa/avx2.h"
#include "decode/tables.h"

namespace rlhf::avx2 {
const DecodeKernels& decode_kernels(Element element) {
    static constexpr DecodeKernels bf16 = decode_kernels_of<WideDecode<Avx2, std::uint16_t>>;
    static constexpr DecodeKernels fp32 = decode_kernels_of<WideDecode<Avx2, float>>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}
}  // namespace rlhf::avx2
#endif
