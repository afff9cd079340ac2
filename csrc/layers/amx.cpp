#include "layers/kernels.h"

#if RLHF_AMX
#include "isa/amx.h"
#include "isa/avx512bf16_pairs.h"
#include "layers/rows.h"
#include "layers/tile_attention_backward.h"
#include "layers/tile_attention_forward.h"

namespace rlhf::amx {
const LayerKernels& layer_kernels(Element element) {
    using Isa = Avx512Pairs;
    using T = std::uint16_t;
    static constexpr LayerKernels bf16 = {
        rms_norm<Isa, T>,   rms_norm_backward<Isa, T>, swiglu<Isa, T>,      swiglu_backward<Isa, T>, rotary<Isa, T>,
        tile_forward_bytes, tile_attention_forward,    tile_backward_bytes, tile_attention_backward};
    return element == Element::kBFloat16 ? bf16 : avx512bf16::layer_kernels(element);
}
}  // namespace rlhf::amx
#endif
