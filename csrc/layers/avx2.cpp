#include "layers/kernels.h"

#if RLHF_X86
#include "isa/avx2.h"
#include "layers/tables.h"

namespace rlhf {
namespace avx2 {

const LayerKernels& layer_kernels(Element element) {
    static constexpr LayerKernels bf16 = layer_kernels_of<FloatProduct<Avx2>, std::uint16_t>;
    static constexpr LayerKernels fp32 = layer_kernels_of<FloatProduct<Avx2>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}

}  // namespace avx2
}  // namespace rlhf
#endif
