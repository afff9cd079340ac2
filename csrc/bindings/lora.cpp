#include "lora/lora_linear.h"

#include "bindings/bindings.h"
#include "isa/kernels.h"

namespace lora = rlhf::lora;

namespace {

using Bits = std::uint16_t;

lora::LoraAdapter adapter(Address a, Address b, Address scaled_a, Address rounded_b, std::int64_t rank, float scale) {
    return {pointer<const float>(a),
            pointer<const float>(b),
            pointer<Bits>(scaled_a),
            pointer<Bits>(rounded_b),
            rank,
            scale};
}

lora::LoraLayer layer(Address weight, std::int64_t outputs, std::int64_t inputs, std::int64_t output_stride,
                      std::int64_t input_stride, std::vector<lora::LoraAdapter> adapters,
                      std::vector<lora::LoraGroup> groups, std::int64_t inner_stride, int threads) {
    return {pointer<const Bits>(weight),
            outputs,
            inputs,
            output_stride,
            input_stride,
            std::move(adapters),
            std::move(groups),
            inner_stride,
            &rlhf::kernels_of("amx").lora,
            threads};
}

void forward(const lora::LoraLayer& layer_, Address x, Address bias, Address inner, Address y) {
    lora::lora_linear(layer_, pointer<const Bits>(x), pointer<const float>(bias), pointer<Bits>(inner),
                      pointer<Bits>(y));
}

void backward(const lora::LoraLayer& layer_, Address x, Address inner, Address dy, Address dx,
              const std::vector<lora::LoraGradients>& gradients) {
    lora::lora_linear_backward(layer_, pointer<const Bits>(x), pointer<const Bits>(inner), pointer<const Bits>(dy),
                               pointer<Bits>(dx), gradients);
}

}  // namespace

void define_lora(py::module_& m) {
    using py::arg;
    py::class_<lora::LoraAdapter>(m, "LoraAdapter")
        .def(py::init(&adapter), py::kw_only(), arg("a"), arg("b"), arg("scaled_a"), arg("rounded_b"), arg("rank"),
             arg("scale"));
    py::class_<lora::LoraGroup>(m, "LoraGroup")
        .def(py::init([](std::int64_t slot, std::int64_t first, std::int64_t last) {
                 return lora::LoraGroup{slot, first, last};
             }),
             arg("slot"), arg("first"), arg("last"));
    py::class_<lora::LoraGradients>(m, "LoraGradients")
        .def(py::init(
                 [](Address da, Address db) { return lora::LoraGradients{pointer<float>(da), pointer<float>(db)}; }),
             arg("da"), arg("db"));
    py::class_<lora::LoraLayer>(m, "LoraLayer")
        .def(py::init(&layer), py::kw_only(), arg("weight"), arg("outputs"), arg("inputs"), arg("output_stride"),
             arg("input_stride"), arg("adapters"), arg("groups"), arg("inner_stride"), arg("threads"));
    m.def("lora_linear", &forward, unlocked);
    m.def("lora_linear_backward", &backward, unlocked);
}
