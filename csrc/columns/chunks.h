// Flat columns in chunks of a fixed size. Sums are taken in float64 over each chunk and merged in order, so that
// results do not depend on the number of threads or on which of them took which chunk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace rlhf::columns {

constexpr std::int64_t kChunk = 4096;

inline std::int64_t chunks(std::int64_t slots) { return divide_up(slots, kChunk); }

// body(chunk, first slot, one past its last slot)
template <class Body>
void for_each_chunk(std::int64_t slots, [[maybe_unused]] int team, Body body) {
    const std::int64_t count = chunks(slots);
#pragma omp parallel for if (team > 1) num_threads(team)
    for (std::int64_t chunk = 0; chunk < count; ++chunk) {
        body(chunk, chunk * kChunk, std::min(slots, (chunk + 1) * kChunk));
    }
}

// term(first) + ... + term(last - 1) in eight running sums, an order that a compiler can keep in vectors
template <class Term>
double sum(std::int64_t first, std::int64_t last, Term term) {
    double running[8] = {};
    std::int64_t i = first;
    for (; i + 8 <= last; i += 8) {
        for (int k = 0; k < 8; ++k) running[k] += term(i + k);
    }
    for (int k = 0; i < last; ++i, ++k) running[k] += term(i);
    return ((running[0] + running[1]) + (running[2] + running[3])) +
           ((running[4] + running[5]) + (running[6] + running[7]));
}

}  // namespace rlhf::columns
