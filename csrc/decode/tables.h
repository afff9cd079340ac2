// The table of one instruction set and element type.
#pragma once

#include "decode/attention.h"
#include "decode/product.h"
#include "decode/row_math.h"

namespace rlhf {
namespace {

template <class D>
constexpr DecodeKernels decode_kernels_of = {
    kBlockOutputs<D>, sizeof(typename D::Activation), block_bytes<D>, pack_block<D>,        product<D>, add_outer<D>,
    norm<D>,          swiglu<D>,                      round_row<D>,   attention_scratch<D>, attend<D, VectorScores<D>>};

}  // namespace
}  // namespace rlhf
