#include "isa/portable.h"

#include "decode/kernels.h"
#include "decode/tables.h"

namespace rlhf::portable {
const DecodeKernels& decode_kernels(Element element) {
    static constexpr DecodeKernels bf16 = decode_kernels_of<WideDecode<Portable, std::uint16_t>>;
    static constexpr DecodeKernels fp32 = decode_kernels_of<WideDecode<Portable, float>>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}
}  // namespace rlhf::portable
