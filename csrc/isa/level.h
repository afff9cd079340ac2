// Instruction sets that kernels are compiled for. Drivers ask here what the processor has and choose at run time.
#pragma once

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

enum class Level { kPortable, kAvx2, kAvx512Bf16, kAmx };  // each contains those before it

bool level_available(Level level);

}  // namespace rlhf
