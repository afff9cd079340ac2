#include "layers/kernels.h"

#include "isa/portable.h"
#include "layers/tables.h"

namespace rlhf {
namespace portable {

const LayerKernels& layer_kernels(Element element) {
    static constexpr LayerKernels bf16 = layer_kernels_of<FloatProduct<Portable>, std::uint16_t>;
    static constexpr LayerKernels fp32 = layer_kernels_of<FloatProduct<Portable>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}

}  // namespace portable
}  // namespace rlhf
