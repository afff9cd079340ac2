// The table of one instruction set and element type.
#pragma once

#include "layers/attention_backward.h"
#include "layers/attention_forward.h"
#include "layers/rows.h"

namespace rlhf {
namespace {

template <class P, class T, class Isa = typename P::Isa>
constexpr LayerKernels layer_kernels_of = {
    rms_norm<Isa, T>, rms_norm_backward<Isa, T>, swiglu<Isa, T>,          swiglu_backward<Isa, T>,       rotary<Isa, T>,
    forward_bytes<P>, attention_forward<P, T>,   backward_bytes<P>, attention_backward<P, T>};

}  // namespace
}  // namespace rlhf
