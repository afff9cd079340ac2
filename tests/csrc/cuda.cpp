// The CUDA kernels on fibres, in each order of their threads.
#include <algorithm>

#include "check.h"
#include "cuda/fibres.h"

using rlhf::cuda::fibres::Order;

extern "C" int rlhf_gae(float*, const float*, float*, const std::int32_t*, const float*, std::int64_t, float, float,
                        void*);
extern "C" int rlhf_gae_whiten(float*, const float*, float*, const std::int32_t*, const float*, std::int64_t, float, float,
                               const std::uint8_t*, double*, std::int64_t, int, double, void*);
extern "C" int rlhf_score_rows(float*, const std::int64_t*, const float*, float*, float*, float*, float*, float*, int,
                               std::int64_t, int, std::int64_t, float, float, void*);
extern "C" int rlhf_gradient_rows(float*, const std::int64_t*, const float*, const float*, const float*, const float*,
                                  const float*, const float*, const float*, int, std::int64_t, int, std::int64_t, float,
                                  float, void*);

namespace {

void expect_started(int error) { expect_near<double>("CUDA's error", error, 0, 0, 0); }

// A warp takes 128 tokens at a time, a block 8 sequences, and 3 blocks run together.
const std::vector<std::vector<int>> kLengths = {{}, {0}, {1}, {0, 3, 0, 128, 1}, {129, 127, 300, 4},
                                                {5, 6, 7, 8, 9, 10, 11, 12, 2000, 0, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                 22, 23, 24, 25, 26, 27, 28, 29}};

void check_gae(const std::vector<int>& lengths, bool bootstrapped, bool whiten, bool masked) {
    const double gamma = 0.97, gamma_lam = 0.9, eps = 1e-8;
    std::vector<std::int32_t> cu(lengths.size() + 1);
    for (std::size_t b = 0; b < lengths.size(); ++b) cu[b + 1] = cu[b] + lengths[b];
    const auto sequences = static_cast<std::int64_t>(lengths.size());
    const auto rewards = normal<float>(cu.back()), values = normal<float>(cu.back());
    const auto bootstrap = normal<float>(sequences);
    const Mask mask = random_mask(cu.back());
    std::vector<float> advantages = rewards, returns(rewards.size());
    std::vector<double> moments(3 * 512), expected(rewards.size());
    const float* beyond = bootstrapped ? bootstrap.data() : nullptr;
    const auto g = static_cast<float>(gamma), gl = static_cast<float>(gamma_lam);
    expect_started(
        whiten ? rlhf_gae_whiten(advantages.data(), values.data(), returns.data(), cu.data(), beyond, sequences, g, gl,
                                 masked ? mask.data() : nullptr, moments.data(), cu.back(), 1, eps, nullptr)
               : rlhf_gae(advantages.data(), values.data(), returns.data(), cu.data(), beyond, sequences, g, gl, nullptr));
    double count = 0, sum = 0, m2 = 0;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
        double advantage = 0, next = bootstrapped ? bootstrap[b] : 0;
        for (auto t = static_cast<std::size_t>(cu[b + 1]); t-- > static_cast<std::size_t>(cu[b]);) {
            advantage = rewards[t] + gamma * next - values[t] + gamma_lam * advantage;
            next = values[t];
            expected[t] = advantage;
            expect_near<float>("return", returns[t], advantage + values[t]);
            if (!masked || mask[t]) ++count, sum += advantage;
        }
    }
    const double mean = sum / std::max(count, 1.0);
    for (std::size_t t = 0; t < expected.size(); ++t) m2 += !masked || mask[t] ? std::pow(expected[t] - mean, 2) : 0;
    for (std::size_t t = 0; t < expected.size(); ++t) {
        const bool changes = whiten && count > 1 && (!masked || mask[t]);
        const double scale = changes ? 1 / std::sqrt(m2 / (count - 1) + eps) : 1;
        expect_near<float>("advantage", advantages[t], (expected[t] - (changes ? mean : 0)) * scale);
    }
}

struct Setting {
    int vocabulary;
    int padding;  // entries between the rows
    bool bias;
    double softcap, temperature, spread;
};

double entry(const void* row, int type, std::size_t v) {
    if (type == 0) return static_cast<const float*>(row)[v];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(row)[v];
    if (type == 1) {
        const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return static_cast<double>(half);
}

// z and dz/du of a row, in double
void head(const Setting& s, const float* u, const float* bias, std::vector<double>& z, std::vector<double>& slope) {
    for (std::size_t v = 0; v < z.size(); ++v) {
        const double x = u[v] + (s.bias ? static_cast<double>(bias[v]) : 0.0);
        const double t = s.softcap > 0 ? std::tanh(x / s.softcap) : 0;
        z[v] = (s.softcap > 0 ? s.softcap * t : x) / s.temperature;
        slope[v] = (1 - t * t) / s.temperature;
    }
}

void check_rows(const Setting& s, int type) {
    const std::int64_t n = 3, stride = s.vocabulary + s.padding;
    const auto size = static_cast<std::size_t>(n), vocabulary = static_cast<std::size_t>(s.vocabulary);
    std::vector<float> u = normal<float>((n - 1) * stride + s.vocabulary), bias = normal<float>(s.vocabulary);
    for (float& x : u) x *= static_cast<float>(s.spread);
    std::vector<float> scored = u, again = u, lp(size), entropy(size), largest(size), log_sum(size), pull(size);
    const auto d_lp = normal<float>(n), d_entropy = normal<float>(n);
    const std::vector<std::int64_t> labels = {0, s.vocabulary - 1, s.vocabulary / 2};
    const float* b = s.bias ? bias.data() : nullptr;
    const auto t = static_cast<float>(1 / s.temperature), cap = static_cast<float>(s.softcap);
    expect_started(rlhf_score_rows(scored.data(), labels.data(), b, lp.data(), entropy.data(), largest.data(),
                                   log_sum.data(), type < 0 ? nullptr : pull.data(), type, n, s.vocabulary, stride, t, cap,
                                   nullptr));
    if (type >= 0) {
        expect_started(rlhf_gradient_rows(again.data(), labels.data(), b, lp.data(), entropy.data(), largest.data(),
                                          log_sum.data(), d_lp.data(), d_entropy.data(), type, n, s.vocabulary, stride, t,
                                          cap, nullptr));
    }
    const double rounding = type <= 0 ? 0 : type == 1 ? 1.0 / 256 : 1.0 / 1024;
    std::vector<double> z(vocabulary), slope(vocabulary);
    for (std::size_t r = 0; r < size; ++r) {
        const std::size_t row = r * static_cast<std::size_t>(stride);
        head(s, &u[row], bias.data(), z, slope);
        const double top = *std::max_element(z.begin(), z.end());
        double sum = 0, moment = 0;
        for (const double x : z) sum += std::exp(x - top), moment += std::exp(x - top) * (x - top);
        const auto y = static_cast<std::size_t>(labels[r]);
        const double h = std::log(sum) - moment / sum, scale = std::abs(top) + s.spread;
        expect_near<float>("log-prob", lp[r], z[y] - top - std::log(sum), scale);
        expect_near<float>("entropy", entropy[r], h, scale);
        expect_near<float>("largest", largest[r], top, scale);
        expect_near<float>("log of the sum", log_sum[r], std::log(sum), scale);
        if (type < 0) continue;
        expect_near<float>("pull", pull[r], (1 - std::exp(z[y] - top) / sum) * slope[y], scale);
        for (std::size_t v = 0; v < vocabulary; ++v) {
            const double log_p = z[v] - top - std::log(sum), p = std::exp(log_p), allowed = 64 * scale;
            const double g = d_lp[r] * ((v == y) - p) - d_entropy[r] * p * (log_p + h);
            const double held = v == y ? 0 : p * slope[v], full = g * slope[v];
            const double more = rounding / std::numeric_limits<float>::epsilon();
            const double small = type == 2 ? 6.2e-5 : 1e-6;  // below it float16 keeps fewer digits
            expect_near<float>("part of the gradient", entry(&scored[row], type, v), held, small, allowed + more);
            expect_near<float>("gradient", entry(&again[row], type, v), full, 1e-2, allowed + more);
        }
    }
}

}  // namespace

void check_cuda() {
    for (const Order order : {Order::kForward, Order::kBackward, Order::kShuffled}) {
        rlhf::cuda::fibres::order = order;
        for (const auto& lengths : kLengths) {
            for (const bool bootstrapped : {false, true}) check_gae(lengths, bootstrapped, false, false);
            for (const bool masked : {false, true}) check_gae(lengths, masked, true, masked);
        }
        // a block takes 2048 columns at a time; rows begin at 16 bytes where they are a multiple of 4 apart
        for (const int type : {-1, 0, 1, 2}) {
            check_rows({4100, 0, false, 0, 1, 3}, type);
            check_rows({2049, 2, true, 5, 0.7, 8}, type);
            check_rows({2048, 0, true, 0, 1.3, 100}, type);
            check_rows({1, 0, false, 0, 1, 1}, type);
        }
    }
}
