// Log-probs of labels, entropy, KL and samples from hidden states, without the logits:
// z = softcap(h W^T + b) / temperature, log softmax(z)[y]. Logits are computed a tile at a time, in float, and reduced
// while the tile is in cache; extra memory is some hundred bytes a row and a few MiB of tiles. Rows with a negative
// label are skipped: outputs are 0.
//
// A row's result depends on neither the other rows nor the number of threads.
#pragma once

#include <cstdint>

#include "common.h"
#include "logprobs/kernels.h"

namespace rlhf::logprobs {

struct Scoring {
    Projection projection;
    Matrix hidden, weight;       // (rows, hidden_size), (vocabulary, hidden_size)
    const std::int64_t* labels;  // (rows,)
    std::int64_t rows;
};

// All (rows,). The statistics are what the backward needs; entropy may be nullptr.
struct Scores {
    float *logprobs, *entropy, *max, *log_sum;
};

void linear_logprobs(const Scoring& scoring, const Scores& scores, const Compute& compute);

// The same with the gradient of each row's log-prob, directions (rows, hidden_size), contiguous: rows that are not
// skipped are written. Here the last bits depend on the number of threads. The gradients of up to kTaskRows rows are
// kept in float per thread.
void linear_logprobs_directions(const Scoring& scoring, const Scores& scores, float* directions,
                                const Compute& compute);

// The reference has its own hidden states and weights, all else is shared; kl (rows,) may be nullptr.
void policy_reference_logprobs(const Scoring& policy, Matrix ref_hidden, Matrix ref_weight, float* logprobs,
                               float* ref_logprobs, float* kl, const Compute& compute);

// d_hidden (rows, hidden_size), contiguous, of the hidden states' element type: rows that are not skipped are written.
// entropy and d_entropy may both be nullptr.
void linear_logprobs_backward(const Scoring& scoring, const Scores& scores, const float* d_logprobs,
                              const float* d_entropy, void* d_hidden, const Compute& compute);

// A token for each row from softmax(z), z = softcap(h W^T + b) / temperature, and its log-prob, without the logits.
// A row's draw depends on its hidden state, seed and step: not on the other rows or the number of threads.
struct Drawing {
    Projection projection;  // temperature 1 where the draw is greedy
    Matrix hidden, weight;
    std::int64_t rows;
    const std::int64_t *seeds, *steps;  // (rows,), or nullptr: the likeliest token
};

void sample(const Drawing& drawing, std::int64_t* tokens, float* logprobs, const Compute& compute);

}  // namespace rlhf::logprobs
