#include "kernels.h"

#if RLHF_AMX
#include "../simd/isa_amx.h"
#include "pair_decode.h"
#include "tables.h"

namespace rlhf::amx {
const DecodeKernels& decode_kernels(Element element) {
    static constexpr DecodeKernels bf16 = decode_kernels_of<PairDecode>;
    return element == Element::kBFloat16 ? bf16 : avx512bf16::decode_kernels(element);
}
}  // namespace rlhf::amx
#endif
