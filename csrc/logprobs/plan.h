// How work that ends in an (N, H) gradient is cut: `parts` of the scored rows times `splits` of the vocabulary. The
// gradients of a task's rows accumulate in float while its blocks of weights pass by. The vocabulary is split, at the
// price of partial sums that are joined in order, only where there are too few rows to give every thread some.
#pragma once

#include <algorithm>
#include <cstdint>

#include "logprobs/kernels.h"
#include "logprobs/scored_rows.h"

namespace rlhf {

constexpr std::int64_t kTaskRows = 256;       // most rows of a task
constexpr std::int64_t kTaskBytes = 4 << 20;  // most bytes of their hidden states and, in float, their gradients
constexpr std::int64_t kFewestRows = 192;     // a task with fewer spends too much of its time on rearranging weights

struct Range {
    std::int64_t first, count;
};

struct Plan {
    std::int64_t rows, vocabulary, parts, splits;

    Plan(std::int64_t scored_rows, const Projection& projection, Element element, int threads)
        : rows(scored_rows), vocabulary(projection.vocabulary), splits(1) {
        const std::int64_t row_bytes = projection.hidden_size * (element == Element::kBFloat16 ? 6 : 8);
        const std::int64_t most = std::clamp<std::int64_t>(kTaskBytes / row_bytes, 48, kTaskRows);
        parts = divide_up(rows, most);
        if (rows >= threads * std::min(kFewestRows, most)) {
            parts = divide_up(parts, threads) * threads;
        } else {
            splits = std::min(divide_up(threads, parts), divide_up(vocabulary, 128));
        }
    }

    Range rows_of(std::int64_t part) const { return piece(part, parts, rows); }
    Range vocabulary_of(std::int64_t split) const { return piece(split, splits, vocabulary); }

    // accumulate(part, split) for all, in parallel, and finish(part) after all of a part's splits
    template <class Accumulate, class Finish>
    void run([[maybe_unused]] int team, Accumulate accumulate, Finish finish) const {
#pragma omp parallel for schedule(dynamic) num_threads(team)
        for (std::int64_t task = 0; task < parts * splits; ++task) {
            accumulate(task / splits, task % splits);
            if (splits == 1) finish(task);
        }
        for (std::int64_t part = 0; splits > 1 && part < parts; ++part) finish(part);
    }

   private:
    static Range piece(std::int64_t i, std::int64_t pieces, std::int64_t total) {
        const std::int64_t first = i * total / pieces;
        return {first, (i + 1) * total / pieces - first};
    }
};

}  // namespace rlhf
