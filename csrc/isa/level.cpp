#include "isa/level.h"

#if RLHF_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rlhf {
namespace {

// Tile registers: the processor has them, and the kernel grants this process their state, which it does once for all.
bool has_tiles() {
#if RLHF_AMX
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTile) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

bool level_available(Level level) {
    if (level == Level::kPortable) return true;
#if RLHF_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (level == Level::kAvx2) return avx2;
    const bool avx512bf16 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bf16");
    if (level == Level::kAvx512Bf16) return avx512bf16;
    static const bool tiles = has_tiles();
    return avx512bf16 && tiles;
#else
    return false;
#endif
}

}  // namespace rlhf
