// Rows of hidden states as panels: up to kGroups groups of kLanes rows, so that one register holds one element, or one
// pair of elements, of kLanes rows. A panel is [step][group][lane]; panels differ by at most one group.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/bfloat16.h"
#include "logprobs/kernels.h"
#include "isa/product.h"
#include "isa/target.h"

namespace rlhf {
namespace {

template <class Isa>
struct PanelPlan {
    static constexpr int kRows = Isa::kLanes * Isa::kGroups;  // most rows of a panel
    std::int64_t groups, panels;

    explicit PanelPlan(std::int64_t rows)
        : groups((rows + Isa::kLanes - 1) / Isa::kLanes), panels((groups + Isa::kGroups - 1) / Isa::kGroups) {}
    std::int64_t first_group(std::int64_t panel) const { return panel * groups / panels; }
    std::int64_t first_row(std::int64_t panel) const { return first_group(panel) * Isa::kLanes; }
    int group_count(std::int64_t panel) const {
        return static_cast<int>(first_group(panel + 1) - first_group(panel));
    }
};

template <class P>
constexpr std::int64_t step_count(std::int64_t hidden_size) {
    constexpr std::int64_t elements = P::kDepth * kStepsAtOnce<P>;
    return (hidden_size + elements - 1) / elements * kStepsAtOnce<P>;
}

template <class P>
std::int64_t padded_rows(std::int64_t rows) {
    return PanelPlan<typename P::Isa>(rows).groups * P::Isa::kLanes;
}

template <class P>
std::int64_t panel_bytes(std::int64_t rows, std::int64_t hidden_size) {
    return padded_rows<P>(rows) * step_count<P>(hidden_size) * static_cast<std::int64_t>(sizeof(typename P::Cell));
}

template <class P>
inline const typename P::Cell* panel_of(const void* panels, std::int64_t first_row, std::int64_t hidden_size) {
    return static_cast<const typename P::Cell*>(panels) + first_row * step_count<P>(hidden_size);
}

template <class P, class Source>
RLHF_TARGET void pack(const Matrix& hidden, const std::int64_t* ids, std::int64_t rows, std::int64_t hidden_size,
                      void* panels) {
    const PanelPlan<typename P::Isa> plan(rows);
    auto* out = static_cast<typename P::Cell*>(panels);
    for (std::int64_t panel = 0; panel < plan.panels; ++panel) {
        const std::int64_t first = plan.first_row(panel), lanes = plan.first_row(panel + 1) - first;
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            const bool present = first + lane < rows;
            const std::int64_t id = present ? ids[first + lane] : 0;
            const auto* row = static_cast<const Source*>(hidden.data) + id * hidden.stride;
            for (std::int64_t step = 0; step < step_count<P>(hidden_size); ++step) {
                const int left = static_cast<int>(std::min<std::int64_t>(hidden_size - step * P::kDepth, P::kDepth));
                out[step * lanes + lane] = present && left > 0 ? P::cell(row + step * P::kDepth, left) : typename P::Cell(0);
            }
        }
        out += lanes * step_count<P>(hidden_size);
    }
}

}  // namespace
}  // namespace rlhf
