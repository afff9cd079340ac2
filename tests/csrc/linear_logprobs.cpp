#include "logprobs/logprobs.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "isa/kernels.h"

namespace logprobs = rlhf::logprobs;

namespace {

using rlhf::Element;

std::uint16_t bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bfloat16(std::uint16_t x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Random rows `gap` elements apart, none behind the last one, and what they hold.
struct Operand {
    std::int64_t columns, stride;
    std::vector<float> fp32;
    std::vector<std::uint16_t> bf16;

    Operand(std::int64_t rows, std::int64_t columns, std::int64_t gap, Element element)
        : columns(columns), stride(columns + gap) {
        fp32 = normal<float>(rows == 0 ? 0 : (rows - 1) * stride + columns);
        if (element == Element::kFloat32) return;
        for (float& x : fp32) bf16.push_back(bfloat16(x)), x = from_bfloat16(bf16.back());
        bf16.shrink_to_fit();
    }
    logprobs::Matrix matrix() const {
        return {bf16.empty() ? static_cast<const void*>(fp32.data()) : bf16.data(), stride};
    }
    double at(std::int64_t row, std::int64_t column) const {
        return fp32[static_cast<std::size_t>(row * stride + column)];
    }
};

struct Shape {
    std::int64_t rows, vocabulary, hidden_size, gap;
    float temperature, softcap;
    bool biased;
};

// A row's log-probs over the vocabulary, and the slope of its logits.
struct Row {
    std::vector<double> logprobs, slopes;
    double entropy = 0;

    Row(const Operand& hidden, const Operand& weight, const std::vector<float>& bias, const Shape& s, std::int64_t r) {
        double sum = 0;
        for (std::int64_t v = 0; v < s.vocabulary; ++v) {
            double z = s.biased ? bias[static_cast<std::size_t>(v)] : 0, slope = 1;
            for (std::int64_t h = 0; h < s.hidden_size; ++h) z += hidden.at(r, h) * weight.at(v, h);
            if (s.softcap > 0) {
                slope = 1 - std::pow(std::tanh(z / s.softcap), 2);
                z = s.softcap * std::tanh(z / s.softcap);
            }
            logprobs.push_back(z / s.temperature);
            slopes.push_back(slope / s.temperature);
            sum += std::exp(logprobs.back());
        }
        for (double& l : logprobs) l -= std::log(sum), entropy -= std::exp(l) * l;
    }
};

constexpr double kRoundings = 1000;  // of float32, for logits of some units

void check(const Shape& s, const rlhf::Kernels* level, Element element) {
    const Operand hidden(s.rows, s.hidden_size, s.gap, element), ref_hidden(s.rows, s.hidden_size, 0, element);
    const Operand weight(s.vocabulary, s.hidden_size, s.gap, element);
    const Operand ref_weight(s.vocabulary, s.hidden_size, 1, element);
    const auto bias = normal<float>(s.vocabulary);
    std::vector<std::int64_t> labels(static_cast<std::size_t>(s.rows));
    for (auto& label : labels) label = generator()() % 4 == 0 ? -100 : generator()() % s.vocabulary;
    const rlhf::Compute compute{level, element, 2};
    const logprobs::Scoring scoring{
        {s.vocabulary, s.hidden_size, s.biased ? bias.data() : nullptr, s.temperature, s.softcap},
        hidden.matrix(),
        weight.matrix(),
        labels.data(),
        s.rows};

    std::vector<float> logprobs(labels.size()), entropy(labels.size()), max(labels.size()), log_sum(labels.size());
    const logprobs::Scores scores{logprobs.data(), entropy.data(), max.data(), log_sum.data()};
    logprobs::linear_logprobs(scoring, scores, compute);
    std::vector<float> policy(labels.size()), reference(labels.size()), kl(labels.size());
    logprobs::policy_reference_logprobs(scoring, ref_hidden.matrix(), ref_weight.matrix(), policy.data(),
                                        reference.data(), kl.data(), compute);
    const auto d_logprobs = normal<float>(s.rows), d_entropy = normal<float>(s.rows);
    const auto entries = static_cast<std::size_t>(s.rows * s.hidden_size);
    const bool bf16 = element == Element::kBFloat16;
    std::vector<float> d_float(bf16 ? 0 : entries);
    std::vector<std::uint16_t> d_bfloat(bf16 ? entries : 0);
    void* d_hidden = bf16 ? static_cast<void*>(d_bfloat.data()) : d_float.data();
    logprobs::linear_logprobs_backward(scoring, scores, d_logprobs.data(), d_entropy.data(), d_hidden, compute);

    for (std::int64_t r = 0; r < s.rows; ++r) {
        const auto i = static_cast<std::size_t>(r);
        const auto d = [&](std::int64_t h) {
            const auto at = static_cast<std::size_t>(r * s.hidden_size + h);
            return bf16 ? from_bfloat16(d_bfloat[at]) : d_float[at];
        };
        if (labels[i] < 0) {
            for (const float got : {logprobs[i], entropy[i], policy[i], reference[i], kl[i], d(0)})
                expect_near<float>("skipped row", got, 0, 0);
            continue;
        }
        const Row row(hidden, weight, bias, s, r), ref(ref_hidden, ref_weight, bias, s, r);
        const auto label = static_cast<std::size_t>(labels[i]);
        double exact_kl = 0;
        for (std::size_t v = 0; v < row.logprobs.size(); ++v)
            exact_kl += std::exp(row.logprobs[v]) * (row.logprobs[v] - ref.logprobs[v]);
        expect_near<float>("log-prob", logprobs[i], row.logprobs[label], 1, kRoundings);
        expect_near<float>("entropy", entropy[i], row.entropy, 1, kRoundings);
        expect_near<float>("policy's log-prob", policy[i], row.logprobs[label], 1, kRoundings);
        expect_near<float>("reference's log-prob", reference[i], ref.logprobs[label], 1, kRoundings);
        expect_near<float>("KL", kl[i], exact_kl, 1, kRoundings);
        for (std::int64_t h = 0; h < s.hidden_size; ++h) {
            double expected = 0;
            for (std::size_t v = 0; v < row.logprobs.size(); ++v) {
                const double p = std::exp(row.logprobs[v]);
                const double d_logit = d_logprobs[i] * ((v == label) - p) -
                                       d_entropy[i] * p * (row.logprobs[v] + row.entropy);
                expected += d_logit * row.slopes[v] * weight.at(static_cast<std::int64_t>(v), h);
            }
            expect_near<float>("gradient", d(h), expected, 1, bf16 ? 1e5 : kRoundings);  // bf16: 2^-8 and some
        }
    }
}

// Without entropy, its gradient and KL
void check_optional_outputs(const rlhf::Kernels* level, Element element) {
    const Operand hidden(3, 5, 0, element), weight(9, 5, 0, element);
    const std::vector<std::int64_t> labels = {8, -100, 0};
    const rlhf::Compute compute{level, element, 1};
    const logprobs::Scoring scoring{{9, 5, nullptr, 1, 0}, hidden.matrix(), weight.matrix(), labels.data(), 3};
    std::vector<float> logprobs(3), max(3), log_sum(3), policy(3), reference(3), d_logprobs(3, 1.0f), d_hidden(15);
    const logprobs::Scores scores{logprobs.data(), nullptr, max.data(), log_sum.data()};
    logprobs::linear_logprobs(scoring, scores, compute);
    logprobs::linear_logprobs_backward(scoring, scores, d_logprobs.data(), nullptr, d_hidden.data(), compute);
    logprobs::policy_reference_logprobs(scoring, hidden.matrix(), weight.matrix(), policy.data(), reference.data(),
                                        nullptr, compute);
    for (std::size_t r = 0; r < 3; ++r) {
        expect_near<float>("policy's log-prob", policy[r], logprobs[r], 1, kRoundings);
        expect_near<float>("reference's log-prob", reference[r], logprobs[r], 1, kRoundings);
    }
}

}  // namespace

void check_linear_logprobs() {
    const std::vector<Shape> shapes = {{0, 5, 3, 0, 1, 0, false},   {1, 1, 1, 0, 1, 0, false},
                                       {2, 3, 7, 1, 0.7f, 0, true}, {5, 19, 33, 0, 1, 2, false},
                                       {17, 33, 16, 3, 1.3f, 4, true}, {67, 131, 31, 0, 1, 0, true},
                                       {9, 1100, 5, 2, 1, 0, false},   {33, 300, 70, 2, 1, 0, true},
                                       {3, 20, 700, 0, 1, 0, false}};
    for (const rlhf::Kernels* level : rlhf::available_kernels()) {
        for (const auto element : {Element::kFloat32, Element::kBFloat16}) {
            for (const Shape& shape : shapes) check(shape, level, element);
            check_optional_outputs(level, element);
        }
    }
}
