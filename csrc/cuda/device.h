// What the kernels of this folder are written in: CUDA under nvcc, and under a C++ compiler the same words on fibres.
//
// Beside CUDA's own: SHARED declares the one struct that the threads of a block share, `grid_sync` waits for all blocks
// of a launch made with `launch_together`, and the launches return CUDA's error, 0 for none.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)

#include <cooperative_groups.h>
#include <cuda_fp16.h>

#define SHARED(type, name) __shared__ type name

namespace rlhf::cuda {

__device__ inline void grid_sync() { cooperative_groups::this_grid().sync(); }

template <typename... P>
int launch(void (*kernel)(P...), int blocks, int threads, void* stream, std::common_type_t<P>... arguments) {
    kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
    return static_cast<int>(cudaGetLastError());
}

// A launch whose blocks all run at the same time: at most `resident_blocks`.
template <typename... P>
int launch_together(void (*kernel)(P...), int blocks, int threads, void* stream, std::common_type_t<P>... arguments) {
    void* pointers[] = {&arguments...};
    return static_cast<int>(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks),
                                                        dim3(threads), pointers, 0, static_cast<cudaStream_t>(stream)));
}

// How many blocks of the kernel the device holds at the same time, or 0 where it cannot be asked
template <typename... P>
int resident_blocks(void (*kernel)(P...), int threads) {
    int device = 0, processors = 0, each = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return 0;
    if (cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 0;
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0) != cudaSuccess) return 0;
    return processors * each;
}

__device__ inline std::uint16_t half_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }

}  // namespace rlhf::cuda

#else

#include "cuda/fibres.h"

#endif

namespace rlhf::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLanes = 32;

}  // namespace rlhf::cuda
