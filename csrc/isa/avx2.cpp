#include "isa/kernels.h"

#if RLHF_X86
#include "isa/avx2.h"

#include "isa/tables.h"

namespace rlhf::avx2 {

const Kernels& kernels() {
    static constexpr Kernels table = float_kernels<Avx2>("avx2");
    return table;
}

}  // namespace rlhf::avx2
#endif
