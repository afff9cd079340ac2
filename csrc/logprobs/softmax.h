// Running softmax statistics of rows, a tile of logits at a time (Milakov and Gimelshein 2018): with m the largest
// logit so far, the sums are relative to e^m, and are rescaled when m grows. A tile is summed by itself before it is
// added, which keeps rounding errors near those of a pairwise sum.
#pragma once

#include <algorithm>
#include <cstdint>

#include "logprobs/kernels.h"
#include "isa/math.h"
#include "logprobs/panels.h"

namespace rlhf {
namespace {

template <class P>
void reset(const Statistics& statistics, std::int64_t rows) {
    std::fill_n(statistics.max, padded_rows<P>(rows), kLowest);
    std::fill_n(statistics.sum, padded_rows<P>(rows), 0.0f);
    if (statistics.moment != nullptr) std::fill_n(statistics.moment, padded_rows<P>(rows), 0.0f);
}

template <class Isa>
struct Shift {  // from one running maximum to the next: e^(old - new), and old - new itself
    typename Isa::F max, change, factor;

    RLHF_INLINE Shift(const float* old, typename Isa::F top) {
        const auto before = Isa::load(old);
        max = Isa::max(before, top);
        change = floored<Isa>(before - max);
        factor = exp<Isa>(change);
    }
};

struct KeepNothing {
    template <class F>
    RLHF_INLINE void operator()(std::int64_t, F, F) const {}
};

// A group of the tile z, whose rows start at `row`: sums of e^d and of e^d d, d = z - m. Each vector's place in the
// tile, logits and e^d are given to `keep`. Returns e^(old m - new m), by which the caller's own sums are to be scaled.
template <class Isa, class Keep>
RLHF_TARGET typename Isa::F add_tile(const float* z, std::int64_t rows, int group, typename Isa::F top,
                                     const Statistics& to, std::int64_t row, const Keep& keep) {
    const std::int64_t lane = group * Isa::kLanes, at = row + lane;
    const Shift<Isa> shift(to.max + at, top);
    auto sum = Isa::set1(0.0f), moment = Isa::set1(0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t cell = r * Isa::kLanes * Isa::kGroups + lane;
        const auto logit = Isa::load(z + cell);
        const auto d = floored<Isa>(logit - shift.max);
        const auto e = exp<Isa>(d);
        sum = sum + e;
        moment = Isa::fma(e, d, moment);
        keep(cell, logit, e);
    }
    const auto old_sum = Isa::load(to.sum + at);
    const auto old_moment = Isa::fma(shift.change, old_sum, Isa::load(to.moment + at));
    Isa::store(to.max + at, shift.max);
    Isa::store(to.sum + at, Isa::fma(old_sum, shift.factor, sum));
    Isa::store(to.moment + at, Isa::fma(old_moment, shift.factor, moment));
    return shift.factor;
}

// Two models: the policy's moment is the sum of e^d (d - d') with d' that of the reference.
template <class Isa>
RLHF_TARGET void add_tile_pair(const float* z, const float* ref_z, std::int64_t rows, int group, typename Isa::F top,
                               typename Isa::F ref_top, const Statistics& to, const Statistics& ref,
                               std::int64_t row) {
    const std::int64_t lane = group * Isa::kLanes, at = row + lane;
    const Shift<Isa> shift(to.max + at, top), ref_shift(ref.max + at, ref_top);
    auto sum = Isa::set1(0.0f), moment = Isa::set1(0.0f), ref_sum = Isa::set1(0.0f);
    for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t cell = r * Isa::kLanes * Isa::kGroups + lane;
        const auto d = floored<Isa>(Isa::load(z + cell) - shift.max);
        const auto ref_d = floored<Isa>(Isa::load(ref_z + cell) - ref_shift.max);
        const auto e = exp<Isa>(d);
        sum = sum + e;
        moment = Isa::fma(e, d - ref_d, moment);
        ref_sum = ref_sum + exp<Isa>(ref_d);
    }
    const auto old_sum = Isa::load(to.sum + at);
    const auto old_moment = Isa::fma(shift.change - ref_shift.change, old_sum, Isa::load(to.moment + at));
    Isa::store(to.max + at, shift.max);
    Isa::store(to.sum + at, Isa::fma(old_sum, shift.factor, sum));
    Isa::store(to.moment + at, Isa::fma(old_moment, shift.factor, moment));
    Isa::store(ref.max + at, ref_shift.max);
    Isa::store(ref.sum + at, Isa::fma(Isa::load(ref.sum + at), ref_shift.factor, ref_sum));
}

}  // namespace
}  // namespace rlhf
