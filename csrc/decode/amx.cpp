#include "decode/kernels.h"

#if RLHF_AMX
#include "isa/amx.h"
#include "decode/tables.h"
#include "decode/tile_attention.h"
#include "decode/tile_product.h"

namespace rlhf::amx {
namespace {

constexpr DecodeKernels tiled() {
    DecodeKernels kernels = decode_kernels_of<PairDecode>;
    kernels.block_bytes = tile_block_bytes, kernels.pack = pack_tile_block, kernels.product = tile_product;
    kernels.attend = attend<PairDecode, TileScores>;
    return kernels;
}

}  // namespace

const DecodeKernels& decode_kernels(Element element) {
    static constexpr DecodeKernels bf16 = tiled();
    return element == Element::kBFloat16 ? bf16 : avx512bf16::decode_kernels(element);
}
}  // namespace rlhf::amx
#endif
