#include <algorithm>

#include "check.h"
#include "columns/columns.h"

namespace columns = rlhf::columns;

namespace {

constexpr int kThreads = 2;

const std::vector<std::vector<int>> kLengths = {
    {}, {0}, {0, 0}, {1}, {0, 3, 0, 5, 1}, {4, 4, 4, 4}, {9, 2, 0, 30}, {20000, 1, 30001}};

std::vector<std::int32_t> offsets(const std::vector<int>& lengths) {
    std::vector<std::int32_t> cu(lengths.size() + 1);
    for (std::size_t b = 0; b < lengths.size(); ++b) cu[b + 1] = cu[b] + lengths[b];
    return cu;
}

template <typename T>
void check_gae(const std::vector<int>& lengths, bool bootstrapped) {
    const double gamma = 0.9, gamma_lam = 0.8;
    const auto cu = offsets(lengths);
    const auto sequences = static_cast<std::int64_t>(lengths.size());
    const auto rewards = normal<T>(cu.back()), values = normal<T>(cu.back()), bootstrap = normal<T>(sequences);
    std::vector<T> advantages = rewards, returns(rewards.size());
    columns::gae<T>(advantages.data(), values.data(), returns.data(), cu.data(),
                    bootstrapped ? bootstrap.data() : nullptr, sequences, static_cast<T>(gamma),
                    static_cast<T>(gamma_lam), kThreads);
    for (std::size_t b = 0; b < lengths.size(); ++b) {
        double advantage = 0, next = bootstrapped ? bootstrap[b] : 0;
        for (auto t = static_cast<std::size_t>(cu[b + 1]); t-- > static_cast<std::size_t>(cu[b]);) {
            advantage = rewards[t] + gamma * next - values[t] + gamma_lam * advantage;
            next = values[t];
            expect_near<T>("advantage", advantages[t], advantage);
            expect_near<T>("return", returns[t], advantage + values[t]);
        }
    }
}

template <typename T>
void check_shaping(const std::vector<int>& lengths) {
    const auto cu = offsets(lengths);
    const auto sequences = static_cast<std::int64_t>(lengths.size());
    const auto kl = normal<T>(cu.back()), scores = normal<T>(sequences);
    std::vector<std::int64_t> index(lengths.size());
    std::vector<double> expected(kl.size());
    for (std::size_t t = 0; t < kl.size(); ++t) expected[t] = -0.3 * kl[t];
    for (std::size_t b = 0; b < lengths.size(); ++b) {
        index[b] = lengths[b] == 0 ? -1 : cu[b + 1] - 1;
        if (index[b] >= 0) expected[static_cast<std::size_t>(index[b])] += scores[b];
    }
    std::vector<T> rewards(kl.size(), static_cast<T>(kNaN));
    columns::shape_rewards<T>(rewards.data(), kl.data(), cu.back(), scores.data(), index.data(), sequences, T(0.3),
                              kThreads);
    for (std::size_t t = 0; t < kl.size(); ++t) expect_near<T>("reward", rewards[t], expected[t]);
}

template <typename T>
void check_moments_and_whitening(std::int64_t entries, bool masked) {
    auto x = normal<T>(entries);
    const auto mask = random_mask(entries);
    double count = 0, sum = 0, m2 = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (masked && !mask[i]) x[i] = static_cast<T>(kNaN);
        count += !masked || mask[i];
        sum += !masked || mask[i] ? x[i] : 0;
    }
    const double mean = sum / std::max(count, 1.0);
    for (const T entry : x) m2 += std::isnan(entry) ? 0 : (entry - mean) * (entry - mean);
    const std::uint8_t* selected = masked ? mask.data() : nullptr;
    const columns::Moments moments = columns::moments<T>(x.data(), selected, entries, kThreads);
    expect_near<double>("count", moments.count, count, 1, 0);
    expect_near<double>("mean", moments.mean, mean);
    expect_near<double>("m2", moments.m2, m2, count);

    std::vector<T> whitened = x;
    columns::whiten<T>(whitened.data(), selected, entries, moments, {true, 1, 0.5}, kThreads);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double expected = count > 1 ? (x[i] - mean) / std::sqrt(m2 / (count - 1) + 0.5) : x[i];
        if (!std::isnan(x[i])) expect_near<T>("whitened entry", whitened[i], expected);
        if (std::isnan(x[i]) != std::isnan(whitened[i])) expect_near<T>("entry outside the mask", whitened[i], x[i]);
    }
}

}  // namespace

void check_gae() {
    for (const auto& lengths : kLengths) {
        for (const bool bootstrapped : {false, true}) {
            check_gae<float>(lengths, bootstrapped);
            check_gae<double>(lengths, bootstrapped);
        }
    }
}

void check_shaping() {
    for (auto lengths : kLengths) {
        check_shaping<float>(lengths);
        check_shaping<double>(lengths);
    }
    check_shaping<float>({200001});
}

void check_moments_and_whitening() {
    for (const std::int64_t entries : {0, 1, 2, 7, 8, 9, 15, 4095, 4097, 70001}) {
        for (const bool masked : {false, true}) {
            check_moments_and_whitening<float>(entries, masked);
            check_moments_and_whitening<double>(entries, masked);
        }
    }
}
