// Packing of bf16 weights in pairs: the pairs of eight outputs are gathered at once.
#pragma once

#include <cstdint>

#include "decode/pair_decode.h"
#include "decode/product.h"

namespace rlhf {
namespace {

// As pack_block; blocks that are not whole, of bf16 and of an even number of inputs are left to it.
RLHF_TARGET inline void pack_pairs(const WeightRow* rows, std::int64_t count, std::int64_t inputs, void* block) {
    constexpr std::int64_t kOutputs = kBlockOutputs<PairDecode>, kGathered = 8;
    bool whole = count == kOutputs && inputs % PairDecode::kDepth == 0;
    for (std::int64_t n = 0; n < count; ++n) whole = whole && rows[n].element == Element::kBFloat16;
    if (!whole) return pack_block<PairDecode>(rows, count, inputs, block);
    const void* begins[kOutputs];
    for (std::int64_t n = 0; n < kOutputs; ++n) begins[n] = rows[n].data;
    auto* cells = static_cast<PairDecode::Cell*>(block);
    for (std::int64_t k = 0; k < inputs; k += PairDecode::kDepth) {
        const auto offset = _mm512_set1_epi64(k * static_cast<std::int64_t>(sizeof(PairDecode::Stored)));
        for (std::int64_t n = 0; n < kOutputs; n += kGathered, cells += kGathered) {
            const __m512i addresses = _mm512_add_epi64(_mm512_loadu_si512(begins + n), offset);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(cells), _mm512_i64gather_epi32(addresses, nullptr, 1));
        }
    }
}

}  // namespace
}  // namespace rlhf
