#include "isa/kernels.h"

#if RLHF_X86
#include "isa/avx512bf16.h"

#include "isa/tables.h"

namespace rlhf::avx512bf16 {

const Kernels& kernels() {
    using Floats = FloatProduct<Avx512>;
    static constexpr Kernels table = {
        "avx512bf16",
        {logprobs_kernels<Floats, float>(), logprobs_kernels<PairProduct, std::uint16_t>()},
        {layer_kernels<Floats, float>(), layer_kernels<PairProduct, std::uint16_t, Avx512Pairs>()},
        {decode_kernels<decode::WideDecode<Avx512, float>>(), decode_kernels<decode::PairDecode<PairProduct>>()},
        ppo_sums<Avx512>,
        {}};
    return table;
}

}  // namespace rlhf::avx512bf16
#endif
