#include "decode/kernels.h"

#if RLHF_X86
#include "decode/pair_decode.h"
#include "decode/tables.h"

namespace rlhf::avx512bf16 {
const DecodeKernels& decode_kernels(Element element) {
    static constexpr DecodeKernels bf16 = decode_kernels_of<PairDecode>;
    static constexpr DecodeKernels fp32 = decode_kernels_of<WideDecode<Avx512, float>>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}
}  // namespace rlhf::avx512bf16
#endif
