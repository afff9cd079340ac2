// The parts of log-probs and sampling that are compiled for each instruction set: logits of a block of the vocabulary
// for some rows, reduced while they are in cache. Drivers (the .cpp files here) take the table of a level and bring
// memory and threads; the other headers here implement it.
#pragma once

#include <cstdint>

namespace rlhf::logprobs {

// z = softcap(h W^T + b) / temperature
struct Projection {
    std::int64_t vocabulary, hidden_size;
    const float* bias;  // (vocabulary,) or nullptr
    float temperature, softcap;  // softcap 0: none
};

// A matrix whose rows are `stride` elements apart; each row is contiguous.
struct Matrix {
    const void* data;
    std::int64_t stride;
};

// Running statistics of a model's rows over the vocabulary seen so far, relative to the running maximum m:
// `sum` of e^(z-m) and `moment`, the sum of e^(z-m) (z-m) or, with a second model, of e^(z-m) ((z-m) - (z'-m')).
struct Statistics {
    float *max, *sum, *moment;  // each (rows rounded up to a panel,); moment may be nullptr in a second model
};

struct ForwardTask {
    const Projection* projection;
    const std::int64_t* labels;  // (rows,)
    std::int64_t rows, first, last;  // vocabulary [first, last)
    int models;                      // 2: policy and reference, for their log-probs and the KL between them
    const void* panels[2];           // hidden states as written by `pack`
    Matrix weight[2];                // rows of the whole vocabulary
    Statistics statistics[2];        // written
    float* label_logits[2];          // (rows,), written where the label lies in [first, last)
};

// As a forward task of one model, but the label's token is left out of the statistics, and with the sums of the others,
// of e^(z-m) softcap'(z) W, comes the gradient of the row's log-prob.
struct DirectionsTask {
    const Projection* projection;
    const std::int64_t* labels;
    std::int64_t rows, first, last;
    const void* panels;
    Matrix weight;
    Statistics statistics;  // written
    float* label_logits;    // (rows,), written where the label lies in [first, last)
    float* sums;            // (rows rounded up to a panel, gradient_stride) zeroed by the caller
};

// An entry of dz, the gradient of a row's logits, above this share of their sum |dz| is not rounded on its way to dz W.
constexpr float kLargeShare = 1.0f / 64;

// Per row, (rows rounded up to a panel,): what the softmax gradient needs.
struct RowGradients {
    const float *max, *log_sum, *entropy;
    const float *d_logprob, *d_entropy;
    const float* limit;  // larger entries of dz are not rounded
};

struct BackwardTask {
    const Projection* projection;
    const std::int64_t* labels;
    std::int64_t rows, first, last;
    const void* panels;
    Matrix weight;
    RowGradients gradients;
    float* d_hidden;  // (rows rounded up to a panel, gradient_stride) zeroed by the caller, added to
};

// A draw for each row: statistics as of a forward task of one model, and the winner of the race that race.h runs.
struct SampleTask {
    const Projection* projection;
    std::int64_t rows, first, last;
    const void* panels;
    Matrix weight;
    Statistics statistics;                    // written
    const std::uint32_t *keys, *second_keys;  // (rows rounded up to a panel,), or nullptr: the largest logit wins
    float *best, *logit;                      // written: the winner's score, and its logit
    std::int32_t* token;                      // written
};

struct LogprobsKernels {
    std::int64_t (*padded_rows)(std::int64_t rows);
    std::int64_t (*panel_bytes)(std::int64_t rows, std::int64_t hidden_size);
    std::int64_t (*gradient_stride)(std::int64_t hidden_size);
    // Rows `ids` of `hidden` -> panels, lanes of rows side by side
    void (*pack)(const Matrix& hidden, const std::int64_t* ids, std::int64_t rows, std::int64_t hidden_size,
                 void* panels);
    void (*forward)(const ForwardTask& task);
    void (*directions)(const DirectionsTask& task);
    void (*backward)(const BackwardTask& task);
    void (*sample)(const SampleTask& task);
};

}  // namespace rlhf::logprobs
