// The rows that have a label, so that no work is done for the others, and how many threads they are worth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "logprobs/kernels.h"

namespace rlhf {

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

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline int useful_threads(const Projection& projection, std::int64_t rows, int threads) {
    constexpr std::int64_t per_thread = 1 << 20;  // multiplications, some 10 microseconds
    const std::int64_t useful = rows * projection.vocabulary * projection.hidden_size / per_thread;
    return static_cast<int>(std::clamp<std::int64_t>(useful, 1, std::max(threads, 1)));
}

}  // namespace rlhf
