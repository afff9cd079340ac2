// Moments of a column, and the column whitened by them.
#include <algorithm>
#include <cmath>

#include "columns/chunks.h"
#include "columns/columns.h"

namespace rlhf::columns {
namespace {

constexpr std::int64_t kEntriesPerThread = 32768;  // some 10 microseconds of work: less is not worth waking a thread

// The sum of term(i) over the entries under the mask
template <class Term>
double masked_sum(const std::uint8_t* mask, std::int64_t entries, int team, Term term) {
    const Buffer<double> parts(chunks(entries));
    for_each_chunk(entries, team, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
        const auto masked = [=](std::int64_t i) {
            const double value = term(i);  // computed for all entries and then chosen: no branch, so in vectors
            return mask[i] != 0 ? value : 0.0;
        };
        parts.data()[chunk] = mask == nullptr ? sum(first, last, term) : sum(first, last, masked);
    });
    double total = 0;
    for (std::int64_t chunk = 0; chunk < chunks(entries); ++chunk) total += parts.data()[chunk];
    return total;
}

}  // namespace

template <typename T>
Moments moments(const T* x, const std::uint8_t* mask, std::int64_t entries, int threads) {
    const int team = useful_team(entries, kEntriesPerThread, threads);
    const auto one = [](std::int64_t) { return 1.0; };
    const double count = mask == nullptr ? static_cast<double>(entries) : masked_sum(mask, entries, team, one);
    const auto entry = [=](std::int64_t i) { return static_cast<double>(x[i]); };
    const double mean = masked_sum(mask, entries, team, entry) / std::max(count, 1.0);
    const auto squared_deviation = [=](std::int64_t i) { return (x[i] - mean) * (x[i] - mean); };
    return {count, mean, masked_sum(mask, entries, team, squared_deviation)};
}

template Moments moments<float>(const float*, const std::uint8_t*, std::int64_t, int);
template Moments moments<double>(const double*, const std::uint8_t*, std::int64_t, int);

template <typename T>
void whiten(T* x, const std::uint8_t* mask, std::int64_t entries, const Moments& moments, const Whitening& whitening,
            int threads) {
    const double freedom = moments.count - static_cast<double>(whitening.ddof);
    if (!(freedom > 0)) return;
    const double mean = moments.mean, shift = whitening.shift_mean ? 0.0 : mean;
    const double scale = 1 / std::sqrt(moments.m2 / std::max(freedom, 1.0) + whitening.eps);
    const auto whitened = [=](T entry) { return static_cast<T>((entry - mean) * scale + shift); };
    const int team = useful_team(entries, kEntriesPerThread, threads);
    for_each_chunk(entries, team, [=](std::int64_t, std::int64_t first, std::int64_t last) {
        if (mask == nullptr) {
            for (std::int64_t i = first; i < last; ++i) x[i] = whitened(x[i]);
        } else {
            for (std::int64_t i = first; i < last; ++i) x[i] = mask[i] != 0 ? whitened(x[i]) : x[i];
        }
    });
}

template void whiten<float>(float*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);
template void whiten<double>(double*, const std::uint8_t*, std::int64_t, const Moments&, const Whitening&, int);

}  // namespace rlhf::columns
