#include "logprobs/logprobs.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "isa/kernels.h"

namespace logprobs = rlhf::logprobs;

namespace {

// Random floats that bf16 holds, and their bf16.
struct Operand {
    std::vector<float> fp32;
    std::vector<std::uint16_t> bf16;

    explicit Operand(std::int64_t count) : fp32(normal<float>(count)) {
        for (float& x : fp32) {
            std::uint32_t bits;
            std::memcpy(&bits, &x, sizeof bits);
            bf16.push_back(static_cast<std::uint16_t>(bits >> 16));
            bits &= 0xffff0000;
            std::memcpy(&x, &bits, sizeof x);
        }
        bf16.shrink_to_fit();
    }
    const void* row(std::int64_t r, std::int64_t size, rlhf::Element element) const {
        return element == rlhf::Element::kBFloat16 ? static_cast<const void*>(bf16.data() + r * size)
                                                   : fp32.data() + r * size;
    }
};

// The likeliest token, log-probs, and that a draw of a row alone is the one that it has among others.
void check(std::int64_t rows, std::int64_t vocabulary, std::int64_t size, const rlhf::Kernels* level,
           rlhf::Element element) {
    const Operand hidden(rows * size), weight(vocabulary * size);
    const auto bias = normal<float>(vocabulary);
    std::vector<std::int64_t> seeds, steps, tokens(static_cast<std::size_t>(rows), -1), drawn(tokens), alone(1);
    for (std::int64_t r = 0; r < rows; ++r) seeds.push_back(r - 3), steps.push_back(7 * r);
    std::vector<float> logprobs(tokens.size()), drawn_logprobs(tokens.size()), alone_logprob(1);
    const rlhf::Compute compute{level, element, 2};
    const logprobs::Projection projection{vocabulary, size, bias.data(), 1.0f, 0.0f};
    const logprobs::Matrix rows_of_weight{weight.row(0, size, element), size};
    logprobs::Drawing drawing{projection, {hidden.row(0, size, element), size}, rows_of_weight, rows, nullptr, nullptr};
    logprobs::sample(drawing, tokens.data(), logprobs.data(), compute);
    drawing.seeds = seeds.data(), drawing.steps = steps.data();
    logprobs::sample(drawing, drawn.data(), drawn_logprobs.data(), compute);
    const auto width = static_cast<std::size_t>(size);
    for (std::size_t r = 0; r < tokens.size(); ++r) {
        std::vector<double> logits(bias.begin(), bias.end());
        double sum = 0;
        for (std::size_t v = 0; v < logits.size(); ++v) {
            for (std::size_t k = 0; k < width; ++k)
                logits[v] += double(hidden.fp32[r * width + k]) * weight.fp32[v * width + k];
            sum += std::exp(logits[v]);
        }
        const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
        expect_near<double>("greedy token", static_cast<double>(tokens[r]), static_cast<double>(best), 0, 0);
        expect_near<float>("log-prob", logprobs[r], logits[static_cast<std::size_t>(best)] - std::log(sum));
        expect_near<float>("log-prob", drawn_logprobs[r], logits[static_cast<std::size_t>(drawn[r])] - std::log(sum));
        const logprobs::Matrix row{hidden.row(static_cast<std::int64_t>(r), size, element), size};
        const logprobs::Drawing one{projection, row, rows_of_weight, 1, seeds.data() + r, steps.data() + r};
        logprobs::sample(one, alone.data(), alone_logprob.data(), compute);
        expect_near<double>("token alone", static_cast<double>(alone[0]), static_cast<double>(drawn[r]), 0, 0);
    }
}

}  // namespace

void check_sample() {
    for (const rlhf::Kernels* level : rlhf::available_kernels()) {
        for (const std::int64_t rows : {0, 1, 5, 50}) {
            for (const std::int64_t vocabulary : {1, 7, 129, 1100}) {
                check(rows, vocabulary, 5, level, rlhf::Element::kFloat32);
                check(rows, vocabulary, 38, level, rlhf::Element::kBFloat16);
            }
        }
    }
}
