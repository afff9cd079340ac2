// Row kernels over a chunk of logits u = h W^T in float32: a block streams one row over the vocabulary.
//
// score_rows     log-prob of the label, entropy and statistics of each row and, in the logits' own memory, the row's part
//                in the gradient of the log-prob. One launch a chunk.
// gradient_rows  the gradient of the logits for given gradients of log-prob and entropy, in the logits' own memory.
//
// Floor: score_rows reads a logit (4 bytes) and, with a gradient, writes it in the operands' type (2 bytes, or 4): 6 N V
// bytes; a row is longer than shared memory, so that its second reading comes from the L2 cache where the row is still
// there, else 4 N V bytes more. gradient_rows: 6 N V bytes.
//
// Exactness. z = softcap(u + b) / T. Every thread keeps its own largest logit and its sum of e^(z - largest), begun at
// the label's logit and at 0: the label's own term is added last, so that 1 - p_y is a sum of the others and never a
// difference of nearly equal numbers. A logit of -inf takes no part, one that is NaN makes the row NaN.
#include "cuda/device.h"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kLanes;
constexpr int kWide = 4;                    // neighbouring logits that a thread takes at a time
constexpr int kBlock = kThreads * kWide;  // logits that a block takes at a time

enum Type { kNone = -1, kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

struct Bfloat16 {
    std::uint16_t bits;
};
struct Float16 {
    std::uint16_t bits;
};

__device__ inline void convert(float x, float& out) { out = x; }

__device__ inline void convert(float x, Float16& out) { out.bits = half_bits(x); }

// To the nearest, ties to even
__device__ inline void convert(float x, Bfloat16& out) {
    std::uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out.bits = static_cast<std::uint16_t>(nan ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A chunk of rows and what becomes of its logits
struct Rows {
    float* u;  // (n, V), rows `stride` apart
    const std::int64_t* labels;  // (n,)
    const float* bias;           // (V,) or null
    int vocabulary;
    std::int64_t stride;
    float inverse_temperature;
    float softcap;  // or 0 for none
};

struct Logit {
    float z, slope;  // slope = dz/du
};

__device__ inline Logit logit(const Rows& rows, float u, int column) {
    if (rows.bias != nullptr) u += rows.bias[column];
    float slope = 1;
    if (rows.softcap > 0) {
        const float x = u / rows.softcap;
        const float t = expf(-2 * fabsf(x));
        u = rows.softcap * tanhf(x);
        slope = 4 * t / ((1 + t) * (1 + t));  // 1 - tanh^2, where nothing cancels
    }
    return {u * rows.inverse_temperature, slope * rows.inverse_temperature};
}

// The running softmax of some logits: sums of e^(z - largest), and of that times z - largest
struct Running {
    float largest, total, moment;
};

__device__ inline void add(Running& sums, float z) {
    if (z == -INFINITY) return;
    const float d = z - sums.largest;
    const float e = expf(-fabsf(d));
    if (d > 0) {
        sums.moment = sums.total == 0 ? 0.0f : e * (sums.moment - sums.total * d);
        sums.total = sums.total * e + 1;
        sums.largest = z;
    } else {
        sums.total += e;
        sums.moment += e == 0 ? 0.0f : e * d;
    }
}

__device__ inline Running merge(const Running& a, const Running& b) {
    const float top = fmaxf(a.largest, b.largest);
    const float da = a.total == 0 ? 0.0f : a.largest - top, db = b.total == 0 ? 0.0f : b.largest - top;
    const float ea = expf(da), eb = expf(db);
    return {top, ea * a.total + eb * b.total, ea * (a.moment + a.total * da) + eb * (b.moment + b.total * db)};
}

struct Scratch {
    Running warps[kWarps];
};

// The merger of all threads' sums, the same in each of them
__device__ inline Running merge_block(Running sums, Scratch& scratch) {
    for (int by = kLanes / 2; by > 0; by /= 2) {
        const Running other = {__shfl_down_sync(kAllLanes, sums.largest, by), __shfl_down_sync(kAllLanes, sums.total, by),
                               __shfl_down_sync(kAllLanes, sums.moment, by)};
        sums = merge(sums, other);
    }
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    if (lane == 0) scratch.warps[warp] = sums;
    __syncthreads();
    sums = scratch.warps[0];
    for (int i = 1; i < kWarps; ++i) sums = merge(sums, scratch.warps[i]);
    return sums;
}

struct alignas(16) Four {
    float u[kWide];
};

// Logits column..column+3 of a row, 0 beyond its end. whole: they begin at a multiple of 16 bytes.
__device__ inline Four load(const float* row, int column, int vocabulary, bool whole) {
    Four four = {};
    if (whole && column + kWide <= vocabulary) {
        four = *reinterpret_cast<const Four*>(row + column);
    } else {
        for (int i = 0; i < kWide; ++i) {
            if (column + i < vocabulary) four.u[i] = row[column + i];
        }
    }
    return four;
}

template <typename Out>
__device__ inline void store(Out* row, int column, int vocabulary, bool whole, const float (&gradient)[kWide]) {
    struct alignas(kWide * sizeof(Out)) Out4 {
        Out entry[kWide];
    } four;
    for (int i = 0; i < kWide; ++i) convert(gradient[i], four.entry[i]);
    if (whole && column + kWide <= vocabulary) {
        *reinterpret_cast<Out4*>(row + column) = four;
    } else {
        for (int i = 0; i < kWide; ++i) {
            if (column + i < vocabulary) row[column + i] = four.entry[i];
        }
    }
}

__device__ inline bool is_whole(const Rows& rows) {
    return rows.stride % kWide == 0 && reinterpret_cast<std::uintptr_t>(rows.u) % sizeof(Four) == 0;
}

// Replace each logit of the row by gradient(z, slope, column) of type Out, which starts at the row's own beginning. A
// narrower entry lies over a logit of its own block of columns or of an earlier one: all have been read before.
template <typename Out, typename Gradient>
__device__ inline void replace(const Rows& rows, float* u, bool whole, Gradient gradient) {
    Out* out = reinterpret_cast<Out*>(u);
    for (int first = 0; first < rows.vocabulary; first += kBlock) {
        const int column = first + static_cast<int>(threadIdx.x) * kWide;
        const Four four = load(u, column, rows.vocabulary, whole);
        float g[kWide] = {};
        for (int i = 0; i < kWide; ++i) {
            if (column + i >= rows.vocabulary) break;
            const Logit at = logit(rows, four.u[i], column + i);
            g[i] = gradient(at.z, at.slope, column + i);
        }
        __syncthreads();
        store(out, column, rows.vocabulary, whole, g);
    }
}

// Out is void where no gradient is written.
template <typename Out>
__global__ void __launch_bounds__(kThreads)
    score_rows(Rows rows, float* logprobs, float* entropy, float* largest, float* log_sum, float* pull) {
    SHARED(Scratch, scratch);
    const std::int64_t row = blockIdx.x;
    float* u = rows.u + row * rows.stride;
    const bool whole = is_whole(rows);
    const int label = static_cast<int>(rows.labels[row]);
    const Logit own = logit(rows, u[label], label);

    Running sums = {own.z, 0, 0};
    for (int first = 0; first < rows.vocabulary; first += kBlock) {
        const int column = first + static_cast<int>(threadIdx.x) * kWide;
        const Four four = load(u, column, rows.vocabulary, whole);
        for (int i = 0; i < kWide; ++i) {
            if (column + i < rows.vocabulary && column + i != label) add(sums, logit(rows, four.u[i], column + i).z);
        }
    }
    sums = merge_block(sums, scratch);
    const float others = sums.total, own_share = own.z == -INFINITY ? 0.0f : expf(own.z - sums.largest);
    const float row_sum = others + own_share;
    if (threadIdx.x == 0) {
        const float own_moment = own_share == 0 ? 0.0f : own_share * (own.z - sums.largest);
        const float log_of_sum = own.z == sums.largest ? log1pf(others) : logf(row_sum);
        logprobs[row] = own.z - sums.largest - log_of_sum;
        entropy[row] = log_of_sum - (sums.moment + own_moment) / row_sum;
        largest[row] = sums.largest;
        log_sum[row] = log_of_sum;
    }
    if constexpr (!std::is_void_v<Out>) {
        if (threadIdx.x == 0) pull[row] = own.slope * others / row_sum;
        replace<Out>(rows, u, whole, [=](float z, float slope, int column) {
            return column == label ? 0.0f : expf(z - sums.largest) / row_sum * slope;
        });
    }
}

// What a row's gradient is made of: statistics of the forward pass, and the gradients from above
struct Above {
    const float *logprobs, *entropy, *largest, *log_sum, *d_logprobs, *d_entropy;
};

// dz_v = d_logprob ([v = y] - p_v) - d_entropy p_v (log p_v + H), times dz_v/du_v
template <typename Out>
__global__ void __launch_bounds__(kThreads) gradient_rows(Rows rows, Above above) {
    const std::int64_t row = blockIdx.x;
    const int label = static_cast<int>(rows.labels[row]);
    const float h = above.entropy[row], largest = above.largest[row], log_of_sum = above.log_sum[row];
    const float d_logprob = above.d_logprobs[row], d_entropy = above.d_entropy[row];
    const float rest = -expm1f(above.logprobs[row]);  // 1 - p_y
    replace<Out>(rows, rows.u + row * rows.stride, is_whole(rows), [=](float z, float slope, int column) {
        const float log_p = z - largest - log_of_sum;
        const float p = expf(log_p);
        const float by_entropy = p == 0 ? 0.0f : p * (log_p + h);
        return (d_logprob * (column == label ? rest : -p) - d_entropy * by_entropy) * slope;
    });
}

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

}  // namespace
}  // namespace rlhf::cuda

using namespace rlhf::cuda;

// u (n, V) float32 in device memory, `stride` apart. type: of the gradient that takes the place of u, -1 for none; `pull`
// (n,) is then (1 - p_y) dz_y/du_y, which the gradient leaves out, else null. bias is null or (V,), softcap 0 for none.
// All others are (n,). Returns CUDA's error, 0 for none; nothing waits for the device.
extern "C" int rlhf_score_rows(float* u, const std::int64_t* labels, const float* bias, float* logprobs, float* entropy,
                               float* largest, float* log_sum, float* pull, int type, std::int64_t n, int vocabulary,
                               std::int64_t stride, float inverse_temperature, float softcap, void* stream) {
    if (n == 0) return 0;
    const Rows rows = {u, labels, bias, vocabulary, stride, inverse_temperature, softcap};
    const auto run = [&](auto kernel) {
        return launch(kernel, static_cast<int>(n), kThreads, stream, rows, logprobs, entropy, largest, log_sum, pull);
    };
    switch (type) {
        case kNone: return run(score_rows<void>);
        case kFloat32: return run(score_rows<float>);
        case kBfloat16: return run(score_rows<Bfloat16>);
        case kFloat16: return run(score_rows<Float16>);
    }
    return kInvalidValue;
}

// As above; u becomes the gradient of the logits.
extern "C" int rlhf_gradient_rows(float* u, const std::int64_t* labels, const float* bias, const float* logprobs,
                                  const float* entropy, const float* largest, const float* log_sum,
                                  const float* d_logprobs, const float* d_entropy, int type, std::int64_t n,
                                  int vocabulary, std::int64_t stride, float inverse_temperature, float softcap,
                                  void* stream) {
    if (n == 0) return 0;
    const Rows rows = {u, labels, bias, vocabulary, stride, inverse_temperature, softcap};
    const Above above = {logprobs, entropy, largest, log_sum, d_logprobs, d_entropy};
    const auto run = [&](auto kernel) { return launch(kernel, static_cast<int>(n), kThreads, stream, rows, above); };
    switch (type) {
        case kFloat32: return run(gradient_rows<float>);
        case kBfloat16: return run(gradient_rows<Bfloat16>);
        case kFloat16: return run(gradient_rows<Float16>);
    }
    return kInvalidValue;
}

extern "C" const char* rlhf_error_text(int error) {
#if defined(__CUDACC__)
    return cudaGetErrorString(static_cast<cudaError_t>(error));
#else
    return error == 720 ? "too many blocks in a cooperative launch" : "invalid argument";
#endif
}
