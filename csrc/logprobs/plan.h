// How the drivers of log-probs share out their work, and how they join what comes back.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common.h"
#include "logprobs/kernels.h"

namespace rlhf::logprobs {

// The rows that have a label, so that no work is done for the others.
struct ScoredRows {
    std::vector<std::int64_t> ids, labels;

    ScoredRows(const std::int64_t* all_labels, std::int64_t rows) {
        for (std::int64_t row = 0; row < rows; ++row) {
            if (all_labels[row] < 0) continue;
            ids.push_back(row);
            labels.push_back(all_labels[row]);
        }
    }
    std::int64_t count() const { return static_cast<std::int64_t>(ids.size()); }
};

// As many threads as there is work for, at most `threads`
inline int useful_threads(const Projection& projection, std::int64_t rows, int threads) {
    constexpr std::int64_t per_thread = 1 << 20;  // multiplications, some 10 microseconds
    const std::int64_t useful = rows * projection.vocabulary * projection.hidden_size / per_thread;
    return static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
}

constexpr std::int64_t kTaskRows = 256;       // most rows of a task
constexpr std::int64_t kTaskBytes = 4 << 20;  // most bytes of their hidden states and, in float, their gradients
constexpr std::int64_t kFewestRows = 192;     // a task with fewer spends too much of its time on rearranging weights

struct Range {
    std::int64_t first, count;
};

// How work that ends in an (N, H) gradient is cut: `parts` of the scored rows times `splits` of the vocabulary. The
// gradients of a task's rows accumulate in float while its blocks of weights pass by. The vocabulary is split, at the
// price of partial sums that are joined in order, only where there are too few rows to give every thread some.
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

// Statistics of one row over parts of the vocabulary, merged in their order and in double: results do not depend on
// which thread took which part.
struct Merged {  // as Statistics, of one row
    double max, sum, moment;
};

inline double largest(const std::vector<Statistics>& parts, std::int64_t row) {
    float max = parts[0].max[row];
    for (const Statistics& part : parts) max = std::max(max, part.max[row]);
    return max;
}

// `others`: of the second model, where there is one and the moment is relative to it.
inline Merged merge(const std::vector<Statistics>& parts, std::int64_t row,
                    const std::vector<Statistics>* others = nullptr) {
    Merged all{largest(parts, row), 0, 0};
    const double other_max = others == nullptr ? 0 : largest(*others, row);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const double change = parts[i].max[row] - all.max, factor = std::exp(change);
        const double other_change = others == nullptr ? 0 : (*others)[i].max[row] - other_max;
        all.sum += factor * parts[i].sum[row];
        if (parts[i].moment == nullptr) continue;
        all.moment += factor * (parts[i].moment[row] + (change - other_change) * parts[i].sum[row]);
    }
    return all;
}

}  // namespace rlhf::logprobs
