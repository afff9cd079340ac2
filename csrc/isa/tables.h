// The entries of a level's table, for the classes that do its arithmetic: P multiplies in log-probs and layers, D in a
// decode step (decode/product.h); elements are of type T in memory. Each level's source file includes its own
// instruction set first, then this.
#pragma once

#include <cstdint>

#include "decode/attention.h"
#include "decode/product.h"
#include "decode/row_math.h"
#include "isa/kernels.h"
#include "layers/attention_backward.h"
#include "layers/attention_forward.h"
#include "layers/rows.h"
#include "logprobs/backward.h"
#include "logprobs/directions.h"
#include "logprobs/forward.h"
#include "logprobs/race.h"
#include "ppo_loss/slots.h"

namespace rlhf {
namespace {

template <class P, class T>
constexpr logprobs::LogprobsKernels logprobs_kernels() {
    using namespace logprobs;
    return {padded_rows<P>, panel_bytes<P>, gradient_stride<typename P::Isa>,
            pack<P, T>,     forward<P, T>,  directions<P, T>,
            backward<P, T>, sample<P, T>};
}

// Rows: what does arithmetic on each entry alone
template <class P, class T, class Rows = typename P::Isa>
constexpr layers::LayerKernels layer_kernels() {
    using namespace layers;
    return {rms_norm<Rows, T>, rms_norm_backward<Rows, T>, swiglu<Rows, T>,   swiglu_backward<Rows, T>, rotary<Rows, T>,
            forward_bytes<P>,  attention_forward<P, T>,    backward_bytes<P>, attention_backward<P, T>};
}

template <class D>
constexpr decode::DecodeKernels decode_kernels() {
    using namespace decode;
    return {kBlockOutputs<D>,
            sizeof(typename D::Activation),
            block_bytes<D>,
            pack_block<D>,
            product<D>,
            add_outer<D>,
            norm<D>,
            swiglu<D>,
            round_row<D>,
            attention_scratch<D>,
            attend<D, VectorScores<D>>};
}

template <class Isa>
ppo::PPOSums ppo_sums(const ppo::PPOPass<float>& pass, std::int64_t first, std::int64_t last) {
    return ppo::sums_of_slots<ppo::FloatMath<Isa>>(pass, first, last);
}

// A level that multiplies floats, and bf16 once it is widened
template <class Isa>
constexpr Kernels float_kernels(const char* level) {
    using P = FloatProduct<Isa>;
    using decode::WideDecode;
    return {level,
            {logprobs_kernels<P, float>(), logprobs_kernels<P, std::uint16_t>()},
            {layer_kernels<P, float>(), layer_kernels<P, std::uint16_t>()},
            {decode_kernels<WideDecode<Isa, float>>(), decode_kernels<WideDecode<Isa, std::uint16_t>>()},
            ppo_sums<Isa>,
            {}};
}

}  // namespace
}  // namespace rlhf
