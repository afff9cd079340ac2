#include "../layer_kernels.h"

#if RLHF_AMX
#include "isa_amx.h"
#include "layer_tables.h"

namespace rlhf::amx {
const LayerKernels& layer_kernels(Element element) {
    static constexpr LayerKernels bf16 = layer_kernels_of<TileProduct, std::uint16_t>;
    return element == Element::kBFloat16 ? bf16 : avx512bf16::layer_kernels(element);
}
}  // namespace rlhf::amx
#endif
