// Statistics of one row over parts of the vocabulary, merged in their order and in double: results do not depend on
// which thread took which part.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "logprobs/kernels.h"

namespace rlhf {

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

}  // namespace rlhf
