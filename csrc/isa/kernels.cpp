#include "isa/kernels.h"

#include <cstdlib>
#include <stdexcept>

#if RLHF_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rlhf {
namespace {

#if RLHF_X86
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512bf16() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16");
}
#endif

#if RLHF_AMX
// Tile registers: the processor has them, and the kernel grants this process their state, which it does once for all.
bool has_tiles() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTile) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// Each contains those before it, so the list ends at the first that the processor lacks.
std::vector<const Kernels*> levels_of_this_processor() {
    std::vector<const Kernels*> levels{&portable::kernels()};
#if RLHF_X86
    if (!has_avx2()) return levels;
    levels.push_back(&avx2::kernels());
    if (!has_avx512bf16()) return levels;
    levels.push_back(&avx512bf16::kernels());
#endif
#if RLHF_AMX
    if (has_tiles()) levels.push_back(&amx::kernels());
#endif
    return levels;
}

std::string names(const std::vector<const Kernels*>& levels) {
    std::string all;
    for (const Kernels* kernels : levels) all += (all.empty() ? "" : ", ") + std::string(kernels->level);
    return all;
}

std::vector<const Kernels*> chosen_levels() {
    std::vector<const Kernels*> levels = levels_of_this_processor();
    const char* const wanted = std::getenv("RLHF_FAST_LEVEL");
    if (wanted == nullptr || *wanted == '\0') return levels;
    for (std::size_t i = 0; i < levels.size(); ++i) {
        if (std::string(levels[i]->level) != wanted) continue;
        levels.resize(i + 1);
        return levels;
    }
    throw std::invalid_argument("RLHF_FAST_LEVEL is '" + std::string(wanted) + "', expected one of the levels that " +
                                "this processor runs: " + names(levels) + "; set one of them, or unset it");
}

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
    static const std::vector<const Kernels*> levels = chosen_levels();
    return levels;
}

const Kernels& kernels_of(const std::string& level) {
    for (const Kernels* kernels : available_kernels()) {
        if (level == kernels->level) return *kernels;
    }
    throw std::invalid_argument("level is '" + level +
                                "', expected one of those that levels() lists: " + names(available_kernels()));
}

}  // namespace rlhf
