// The one table of everything that is compiled for each instruction set, and the one place that chooses among them: the
// processor and RLHF_FAST_LEVEL are asked once, and drivers are handed a table.
//
// A level is a source file here (portable.cpp, avx2.cpp, avx512bf16.cpp, amx.cpp) that compiles the headers of all
// operations for its instruction set and lists what they define; the header beside it does its arithmetic and says what
// the level gained over the one before.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common.h"
#include "decode/kernels.h"
#include "layers/layers.h"
#include "logprobs/kernels.h"
#include "lora/lora_linear.h"
#include "ppo_loss/ppo_loss.h"

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define RLHF_X86 1
#else
#define RLHF_X86 0
#endif

#if RLHF_X86 && defined(__x86_64__) && defined(__linux__)
#define RLHF_AMX 1
#else
#define RLHF_AMX 0
#endif

namespace rlhf {

template <class T>
struct ByElement {
    T float32, bfloat16;
    constexpr const T& operator[](Element element) const { return element == Element::kFloat32 ? float32 : bfloat16; }
};

struct Kernels {
    const char* level;
    ByElement<logprobs::LogprobsKernels> logprobs;
    ByElement<layers::LayerKernels> layers;
    ByElement<decode::DecodeKernels> decode;
    ppo::PPOSums (*ppo_sums)(const ppo::PPOPass<float>& pass, std::int64_t first, std::int64_t last);
    lora::LoraKernels lora;
};

// The levels that this processor can run, the fastest last, up to the one that the environment variable RLHF_FAST_LEVEL
// names where it is set. Throws std::invalid_argument where it names none of them.
const std::vector<const Kernels*>& available_kernels();

// Throws std::invalid_argument where `level` is not among them.
const Kernels& kernels_of(const std::string& level);

namespace portable {
const Kernels& kernels();
}
#if RLHF_X86
namespace avx2 {
const Kernels& kernels();
}
namespace avx512bf16 {
const Kernels& kernels();
}
#endif
#if RLHF_AMX
namespace amx {
const Kernels& kernels();
}
#endif

}  // namespace rlhf
