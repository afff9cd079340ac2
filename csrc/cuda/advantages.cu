// Generalised advantage estimation over ragged sequences and, in the same launch, the whitening of all advantages.
//
// A warp takes a sequence, 128 tokens at a time from the end to the beginning, 4 neighbouring ones a lane. A lane's
// advantages are A_t = d_t + c A_{t+1} from an unknown A beyond its own tokens; what is beyond comes from a scan over the
// warp: after k steps a lane knows the sum over 2^k lanes, each weighted by a power of c^4, as c is the same everywhere.
// Moments are taken in float64 as advantages are made. Where they are whitened all blocks then wait for each other, merge
// the blocks' moments in one order (Chan, Golub and LeVeque 1979), and each whitens its share of the entries.
//
// Floor: rewards and values are read, advantages and returns written (16 bytes a token); whitening reads and writes the
// advantages once more (8), mostly from the L2 cache, and the mask twice (2): 26 bytes a token in one launch.
#include "cuda/device.h"

namespace rlhf::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kLanes;
constexpr int kItems = 4;                   // tokens a lane
constexpr int kStep = kLanes * kItems;      // tokens a warp at a time
constexpr int kWhitened = 8 * kThreads;     // entries for which whitening gets another block
constexpr int kMaxBlocks = 512;             // whose moments are merged

struct Columns {
    float* rewards;  // (T,), become advantages
    const float* values;              // (T,)
    float* returns;                   // (T,)
    const std::int32_t* offsets;      // (B+1,)
    const float* bootstrap;           // (B,) or null
    std::int64_t sequences;
    float gamma, gamma_lam;
};

struct Whitening {
    const std::uint8_t* mask;  // (T,) or null
    double* moments;           // (blocks, 3)
    std::int64_t entries;
    int ddof;
    double eps;
};

struct Moments {
    double count, mean, m2;
};

__device__ inline void add(Moments& moments, double x) {
    moments.count += 1;
    const double d = x - moments.mean;
    moments.mean += d / moments.count;
    moments.m2 += d * (x - moments.mean);
}

__device__ inline Moments merge(const Moments& a, const Moments& b) {
    const double count = a.count + b.count;
    if (count == 0) return a;
    const double d = b.mean - a.mean, share = b.count / count;
    return {count, a.mean + d * share, a.m2 + b.m2 + d * d * a.count * share};
}

// The merger of the lanes' moments, in lane 0
__device__ inline Moments merge_warp(Moments moments) {
    for (int by = kLanes / 2; by > 0; by /= 2) {
        const Moments other = {__shfl_down_sync(kAllLanes, moments.count, by),
                               __shfl_down_sync(kAllLanes, moments.mean, by), __shfl_down_sync(kAllLanes, moments.m2, by)};
        moments = merge(moments, other);
    }
    return moments;
}

// One sequence by one warp; `moments` of the lane take in its entries where `mask` says so.
template <bool kWhiten>
__device__ inline void advantages_of(const Columns& columns, std::int64_t sequence, const std::uint8_t* mask,
                                     Moments& moments) {
    const int lane = threadIdx.x % kLanes;
    const std::int64_t start = columns.offsets[sequence], end = columns.offsets[sequence + 1];
    const float c = columns.gamma_lam, c4 = c * c * c * c;
    float to_lane = 1;  // c4^lane
    for (int i = 0; i < lane; ++i) to_lane *= c4;
    float carried = 0;  // the advantage after the warp's tokens
    for (std::int64_t done = 0; done < end - start; done += kStep) {
        const std::int64_t last = end - 1 - done - lane * kItems;  // the lane's tokens are last, last - 1, ...
        float next = 0, value[kItems] = {}, delta[kItems] = {}, advantage = 0;
        if (last >= start) {
            const float beyond = columns.bootstrap == nullptr ? 0 : columns.bootstrap[sequence];
            next = last + 1 < end ? columns.values[last + 1] : beyond;
        }
        for (int i = 0; i < kItems; ++i) {
            if (last - i >= start) {
                value[i] = columns.values[last - i];
                delta[i] = columns.rewards[last - i] + columns.gamma * next - value[i];
                next = value[i];
            }
            advantage = delta[i] + c * advantage;
        }
        float weight = c4;
        for (int by = 1; by < kLanes; by *= 2) {
            const float before = __shfl_up_sync(kAllLanes, advantage, by);
            if (lane >= by) advantage += weight * before;
            weight *= weight;
        }
        advantage = __shfl_up_sync(kAllLanes, advantage, 1);
        advantage = (lane == 0 ? 0 : advantage) + to_lane * carried;
        for (int i = 0; i < kItems; ++i) {
            advantage = delta[i] + c * advantage;
            if (last - i < start) continue;
            columns.rewards[last - i] = advantage;
            columns.returns[last - i] = advantage + value[i];
            if (kWhiten && (mask == nullptr || mask[last - i])) add(moments, advantage);
        }
        carried = __shfl_sync(kAllLanes, advantage, kLanes - 1);
    }
}

// (x - mean) / sqrt(m2 / (count - ddof) + eps) where the mask says so, by all blocks; as it is with too few entries
__device__ inline void whiten(float* x, const Whitening& to, const Moments& moments) {
    if (!(moments.count > to.ddof)) return;
    const double scale = 1 / sqrt(moments.m2 / fmax(moments.count - to.ddof, 1.0) + to.eps);
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
    for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x; i < to.entries; i += step) {
        if (to.mask == nullptr || to.mask[i]) x[i] = static_cast<float>((x[i] - moments.mean) * scale);
    }
}

struct Scratch {
    Moments warps[kWarps];
};

template <bool kWhiten>
__global__ void __launch_bounds__(kThreads, 2) gae(Columns columns, Whitening to) {
    const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    Moments moments = {0, 0, 0};
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps;
    for (std::int64_t b = blockIdx.x * static_cast<std::int64_t>(kWarps) + warp; b < columns.sequences; b += warps) {
        advantages_of<kWhiten>(columns, b, to.mask, moments);
    }
    if constexpr (kWhiten) {
        SHARED(Scratch, scratch);
        moments = merge_warp(moments);
        if (lane == 0) scratch.warps[warp] = moments;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 1; i < kWarps; ++i) moments = merge(moments, scratch.warps[i]);
            double* own = to.moments + blockIdx.x * 3;
            own[0] = moments.count, own[1] = moments.mean, own[2] = moments.m2;
        }
        grid_sync();
        moments = {0, 0, 0};
        for (int i = lane; i < static_cast<int>(gridDim.x); i += kLanes) {
            moments = merge(moments, {to.moments[3 * i], to.moments[3 * i + 1], to.moments[3 * i + 2]});
        }
        moments = merge_warp(moments);
        moments = {__shfl_sync(kAllLanes, moments.count, 0), __shfl_sync(kAllLanes, moments.mean, 0),
                   __shfl_sync(kAllLanes, moments.m2, 0)};
        whiten(columns.rewards, to, moments);
    }
}

std::int64_t blocks_for(std::int64_t entries, int each) { return (entries + each - 1) / each; }

}  // namespace
}  // namespace rlhf::cuda

using namespace rlhf::cuda;

// rewards (T,) become advantages, returns (T,) are written; offsets (B+1,) from 0 to T. bootstrap is null or (B,).
// Returns CUDA's error, 0 for none; nothing waits for the device.
extern "C" int rlhf_gae(float* rewards, const float* values, float* returns, const std::int32_t* offsets,
                        const float* bootstrap, std::int64_t sequences, float gamma, float gamma_lam, void* stream) {
    if (sequences == 0) return 0;
    const Columns columns = {rewards, values, returns, offsets, bootstrap, sequences, gamma, gamma_lam};
    return launch(gae<false>, static_cast<int>(blocks_for(sequences, kWarps)), kThreads, stream, columns, Whitening{});
}

// As above; then the advantages where mask (T,) is not 0 (null: all) are whitened. moments: room for 3 x 512 numbers.
extern "C" int rlhf_gae_whiten(float* rewards, const float* values, float* returns, const std::int32_t* offsets,
                               const float* bootstrap, std::int64_t sequences, float gamma, float gamma_lam,
                               const std::uint8_t* mask, double* moments, std::int64_t entries, int ddof, double eps,
                               void* stream) {
    if (sequences == 0) return 0;
    const Columns columns = {rewards, values, returns, offsets, bootstrap, sequences, gamma, gamma_lam};
    const Whitening to = {mask, moments, entries, ddof, eps};
    std::int64_t blocks = blocks_for(sequences, kWarps);
    if (blocks < blocks_for(entries, kWhitened)) blocks = blocks_for(entries, kWhitened);
    const int resident = resident_blocks(gae<true>, kThreads);
    if (blocks > resident) blocks = resident;
    if (blocks > kMaxBlocks) blocks = kMaxBlocks;
    return launch_together(gae<true>, static_cast<int>(blocks), kThreads, stream, columns, to);
}
