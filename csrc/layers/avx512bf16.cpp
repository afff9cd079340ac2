#include "layers/kernels.h"

#if RLHF_X86
#include "isa/avx512bf16.h"
#include "isa/avx512bf16_pairs.h"
#include "layers/tables.h"

namespace rlhf {
namespace avx512bf16 {

const LayerKernels& layer_kernels(Element element) {
    static constexpr LayerKernels bf16 = layer_kernels_of<PairProduct, std::uint16_t, Avx512Pairs>;
    static constexpr LayerKernels fp32 = layer_kernels_of<FloatProduct<Avx512>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}

}  // namespace avx512bf16
}  // namespace rlhf
#endif
