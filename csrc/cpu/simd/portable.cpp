#include "isa_portable.h"

#include "../row_kernels.h"
#include "tasks.h"

namespace rlhf::portable {
const RowKernels& row_kernels(Element element) {
    static constexpr RowKernels bf16 = kernels_of<FloatProduct<Portable>, std::uint16_t>;
    static constexpr RowKernels fp32 = kernels_of<FloatProduct<Portable>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}
}  // namespace rlhf::portable
