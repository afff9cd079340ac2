#include "logprobs/kernels.h"

#if RLHF_AMX
#include "isa/amx.h"
#include "logprobs/tables.h"
#include "logprobs/tile_logits.h"
#include "logprobs/tile_strips.h"

namespace rlhf::amx {
const RowKernels& row_kernels(Element element) {
    static constexpr RowKernels bf16 = kernels_of<TilePanelProduct, std::uint16_t>;
    return element == Element::kBFloat16 ? bf16 : avx512bf16::row_kernels(element);
}
}  // namespace rlhf::amx
#endif
