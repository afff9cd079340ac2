#include "layers/layers.h"

#include <algorithm>

#include "common.h"
#include "isa/kernels.h"

namespace rlhf::layers {
namespace {

constexpr std::int64_t kEntriesPerThread = 16384;  // some 10 microseconds of work: less is not worth waking a thread

// body(first, last) over `count` items of `entries_each`
template <class Body>
void share(std::int64_t count, std::int64_t entries_each, int threads, Body body) {
    const std::int64_t team = std::min<std::int64_t>(useful_team(count * entries_each, kEntriesPerThread, threads),
                                                     std::max<std::int64_t>(count, 1));
#pragma omp parallel for if (team > 1) num_threads(static_cast<int>(team))
    for (std::int64_t part = 0; part < team; ++part) body(count * part / team, count * (part + 1) / team);
}

template <class Task, class Bytes, class Run>
void share_heads(const Task& task, const std::vector<std::int64_t>& offsets, int threads, Bytes bytes, Run run) {
    const std::int64_t kv_heads = task.attention.kv_heads;
    const auto sequences = static_cast<std::int64_t>(offsets.size()) - 1;
    std::int64_t longest = 0;
    for (std::int64_t b = 0; b < sequences; ++b) longest = std::max(longest, offsets[b + 1] - offsets[b]);
    const int team = static_cast<int>(std::clamp<std::int64_t>(sequences * kv_heads, 1, std::max(threads, 1)));
#pragma omp parallel if (team > 1) num_threads(team)
    {
        const Buffer<char> scratch(bytes(longest, task.attention.head_dim));
#pragma omp for schedule(dynamic)
        for (std::int64_t i = 0; i < sequences * kv_heads; ++i) {
            const std::int64_t b = i / kv_heads;
            if (offsets[b] < offsets[b + 1]) run(task, {offsets[b], offsets[b + 1], i % kv_heads, scratch.data()});
        }
    }
}

}  // namespace

void rms_norm(const RmsNorm& norm, std::int64_t rows, const Compute& compute) {
    const auto run = compute.kernels->layers[compute.element].rms_norm;
    share(rows, norm.width, compute.threads, [&](std::int64_t first, std::int64_t last) { run(norm, first, last); });
}

void rms_norm_backward(const RmsNormBackward& norm, std::int64_t rows, const Compute& compute) {
    const auto run = compute.kernels->layers[compute.element].rms_norm_backward;
    share(rows, norm.width, compute.threads, [&](std::int64_t first, std::int64_t last) { run(norm, first, last); });
}

void swiglu(const Swiglu& swiglu, std::int64_t entries, const Compute& compute) {
    const auto run = compute.kernels->layers[compute.element].swiglu;
    share(entries, 1, compute.threads, [&](std::int64_t first, std::int64_t last) { run(swiglu, first, last); });
}

void swiglu_backward(const SwigluBackward& swiglu, std::int64_t entries, const Compute& compute) {
    const auto run = compute.kernels->layers[compute.element].swiglu_backward;
    share(entries, 1, compute.threads, [&](std::int64_t first, std::int64_t last) { run(swiglu, first, last); });
}

void rotary(const Rotary& rotary, std::int64_t tokens, const Compute& compute) {
    const auto run = compute.kernels->layers[compute.element].rotary;
    share(tokens, rotary.heads * rotary.head_dim, compute.threads,
          [&](std::int64_t first, std::int64_t last) { run(rotary, first, last); });
}

void attention(const AttentionForward& forward, const std::vector<std::int64_t>& offsets, const Compute& compute) {
    const LayerKernels& kernels = compute.kernels->layers[compute.element];
    share_heads(forward, offsets, compute.threads, kernels.attention_scratch, kernels.attention);
}

void attention_backward(const AttentionBackward& backward, const std::vector<std::int64_t>& offsets,
                        const Compute& compute) {
    const LayerKernels& kernels = compute.kernels->layers[compute.element];
    share_heads(backward, offsets, compute.threads, kernels.attention_backward_scratch, kernels.attention_backward);
}

}  // namespace rlhf::layers
