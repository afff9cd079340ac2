// A token for each row from softmax(z), z = softcap(h W^T + b) / temperature, and its log-prob, without the logits.
// A row's draw depends on its hidden state, seed and step: not on the other rows or the number of threads.
#pragma once

#include <cstdint>

#include "logprobs/logprobs.h"

namespace rlhf {

struct Drawing {
    Projection projection;  // temperature 1 where the draw is greedy
    Matrix hidden, weight;
    std::int64_t rows;
    const std::int64_t *seeds, *steps;  // (rows,), or nullptr: the likeliest token
};

void sample(const Drawing& drawing, std::int64_t* tokens, float* logprobs, const Compute& compute);

}  // namespace rlhf
