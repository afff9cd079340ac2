#include "isa/kernels.h"

#include "isa/portable.h"

#include "isa/tables.h"

namespace rlhf::portable {

const Kernels& kernels() {
    static constexpr Kernels table = float_kernels<Portable>("portable");
    return table;
}

}  // namespace rlhf::portable
