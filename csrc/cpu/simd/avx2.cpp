// AVX2 with FMA: 24 rows x 4 vocabulary entries in 12 of the 16 registers. bf16 is widened to float.
#include "../row_kernels.h"

#if RLHF_X86
#include <immintrin.h>

#define RLHF_TARGET __attribute__((target("avx2,fma")))
#include "ppo_loss.h"
#include "tasks.h"

namespace rlhf {
namespace {

struct Avx2 {
    using F = __m256;
    struct Sums {
        __m256d low, high;
    };
    static constexpr int kLanes = 8, kGroups = 3, kRows = 4;

    RLHF_INLINE static F load(const float* p) { return _mm256_loadu_ps(p); }
    RLHF_INLINE static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    RLHF_INLINE static F set1(float x) { return _mm256_set1_ps(x); }
    RLHF_INLINE static F from_bytes(const std::uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    RLHF_INLINE static void add(Sums& sums, F x) {
        sums.low += _mm256_cvtps_pd(_mm256_castps256_ps128(x));
        sums.high += _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    }
    RLHF_INLINE static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    RLHF_INLINE static F max(F a, F b) { return _mm256_max_ps(a, b); }
    RLHF_INLINE static F min(F a, F b) { return _mm256_min_ps(a, b); }
    RLHF_INLINE static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    RLHF_INLINE static F times_power_of_2(F x, F n) {  // n <= 127; 0 where the result would be subnormal
        const __m256i exponent = _mm256_max_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(-127));
        return x * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    }
    RLHF_INLINE static F copy_sign(F x, F sign) { return _mm256_or_ps(x, _mm256_and_ps(sign, set1(-0.0f))); }
};

}  // namespace

namespace avx2 {
const RowKernels& row_kernels(Element element) {
    static constexpr RowKernels bf16 = kernels_of<FloatProduct<Avx2>, std::uint16_t>;
    static constexpr RowKernels fp32 = kernels_of<FloatProduct<Avx2>, float>;
    return element == Element::kBFloat16 ? bf16 : fp32;
}

PPOSums ppo_sums(const PPOPass<float>& pass, std::int64_t first, std::int64_t last) {
    return sums_of_slots<FloatMath<Avx2>>(pass, first, last);
}
}  // namespace avx2
}  // namespace rlhf
#endif
