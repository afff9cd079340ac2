#include "isa/kernels.h"

#if RLHF_AMX
#include "isa/amx.h"

#include "decode/tiles.h"
#include "isa/tables.h"
#include "layers/tile_attention_backward.h"
#include "layers/tile_attention_forward.h"
#include "logprobs/tiles.h"
#include "lora/outer.h"
#include "lora/product.h"

namespace rlhf::amx {
namespace {

layers::LayerKernels tiled_layers() {
    using namespace layers;
    layers::LayerKernels kernels = avx512bf16::kernels().layers.bfloat16;
    kernels.attention_scratch = tile_forward_bytes, kernels.attention = tile_attention_forward;
    kernels.attention_backward_scratch = tile_backward_bytes, kernels.attention_backward = tile_attention_backward;
    return kernels;
}

decode::DecodeKernels tiled_decode() {
    using namespace decode;
    decode::DecodeKernels kernels = avx512bf16::kernels().decode.bfloat16;
    kernels.block_bytes = tile_block_bytes, kernels.pack = pack_tile_block, kernels.product = tile_product;
    kernels.attend = attend<TilePairs, TileScores>;
    return kernels;
}

}  // namespace

// AVX-512 but for the products of bf16
const Kernels& kernels() {
    static const Kernels table = [] {
        Kernels level = avx512bf16::kernels();
        level.level = "amx";
        level.logprobs.bfloat16 = logprobs_kernels<logprobs::TilePanelProduct, std::uint16_t>();
        level.layers.bfloat16 = tiled_layers();
        level.decode.bfloat16 = tiled_decode();
        level.lora = {lora::pack_right, lora::lora_product, lora::transpose_ranks, lora::outer_product};
        return level;
    }();
    return table;
}

}  // namespace rlhf::amx
#endif
