#include "cpu/sample.h"

#include <algorithm>

#include "check.h"

namespace {

// The likeliest token, log-probs, and that a draw of a row alone is the one that it has among others.
void check(std::int64_t rows, std::int64_t vocabulary, rlhf::Level level) {
    constexpr std::int64_t size = 5;
    const auto hidden = normal<float>(rows * size), weight = normal<float>(vocabulary * size);
    const auto bias = normal<float>(vocabulary);
    std::vector<std::int64_t> seeds, steps, tokens(static_cast<std::size_t>(rows), -1), drawn(tokens), alone(1);
    for (std::int64_t r = 0; r < rows; ++r) seeds.push_back(r - 3), steps.push_back(7 * r);
    std::vector<float> logprobs(tokens.size()), drawn_logprobs(tokens.size()), alone_logprob(1);
    const rlhf::Compute compute{level, rlhf::Element::kFloat32, 2};
    const rlhf::Projection projection{vocabulary, size, bias.data(), 1.0f, 0.0f};
    rlhf::Drawing drawing{projection, {hidden.data(), size}, {weight.data(), size}, rows, nullptr, nullptr};
    rlhf::sample(drawing, tokens.data(), logprobs.data(), compute);
    drawing.seeds = seeds.data(), drawing.steps = steps.data();
    rlhf::sample(drawing, drawn.data(), drawn_logprobs.data(), compute);
    for (std::size_t r = 0; r < tokens.size(); ++r) {
        std::vector<double> logits(bias.begin(), bias.end());
        double sum = 0;
        for (std::size_t v = 0; v < logits.size(); ++v) {
            for (std::size_t k = 0; k < size; ++k) logits[v] += double(hidden[r * size + k]) * weight[v * size + k];
            sum += std::exp(logits[v]);
        }
        const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
        expect_near<double>("greedy token", static_cast<double>(tokens[r]), static_cast<double>(best), 0, 0);
        expect_near<float>("log-prob", logprobs[r], logits[static_cast<std::size_t>(best)] - std::log(sum));
        expect_near<float>("log-prob", drawn_logprobs[r], logits[static_cast<std::size_t>(drawn[r])] - std::log(sum));
        const rlhf::Drawing one{projection, {hidden.data() + r * size, size}, {weight.data(), size},
                                1, seeds.data() + r, steps.data() + r};
        rlhf::sample(one, alone.data(), alone_logprob.data(), compute);
        expect_near<double>("token alone", static_cast<double>(alone[0]), static_cast<double>(drawn[r]), 0, 0);
    }
}

}  // namespace

void check_sample() {
    for (const auto level : {rlhf::Level::kPortable, rlhf::Level::kAvx2, rlhf::Level::kAvx512Bf16,
                             rlhf::Level::kAmx}) {
        if (!rlhf::level_available(level)) continue;
        for (const std::int64_t rows : {0, 1, 5, 50}) {
            for (const std::int64_t vocabulary : {1, 7, 129, 1100}) check(rows, vocabulary, level);
        }
    }
}
