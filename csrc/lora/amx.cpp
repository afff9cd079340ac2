#include "lora/kernels.h"

#if RLHF_AMX
#include "isa/amx.h"
#include "lora/outer.h"
#include "lora/pack.h"
#include "lora/product.h"

namespace rlhf::amx {

void pack(const RightMatrix& matrix, std::uint16_t* packed) { pack_right(matrix, packed); }

void multiply(const LoraProductTask& task) { lora_product(task); }

void pack_transposed(const std::uint16_t* left, std::int64_t stride, std::int64_t ranks, const RowRange& range,
                     std::uint16_t* packed) {
    transpose_ranks(left, stride, ranks, range, packed);
}

void outer(const OuterTask& task) { outer_product(task); }

}  // namespace rlhf::amx
#endif
