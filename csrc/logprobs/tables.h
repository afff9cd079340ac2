// The table of one instruction set and element type.
#pragma once

#include "logprobs/backward.h"
#include "logprobs/directions.h"
#include "logprobs/forward.h"
#include "logprobs/race.h"

namespace rlhf {
namespace {

template <class P, class Source>
constexpr RowKernels kernels_of = {padded_rows<P>,     panel_bytes<P>,        gradient_stride<typename P::Isa>,
                                   pack<P, Source>,    forward<P, Source>,    directions<P, Source>,
                                   backward<P, Source>, sample<P, Source>};

}  // namespace
}  // namespace rlhf
