#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "decode/decoder.h"
#include "bindings/level.h"
#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

rlhf::LinearSource linear(std::uintptr_t weight, std::int64_t outputs, std::int64_t inputs, std::int64_t stride,
                          std::uintptr_t bias, std::uintptr_t a, std::uintptr_t b, std::int64_t rank, float scale) {
    return {pointer<const void>(weight), outputs, inputs, stride, pointer<const float>(bias),
            pointer<const float>(a), pointer<const float>(b), rank, scale};
}

rlhf::Decoder decoder(std::int64_t hidden_size, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                      std::int64_t intermediate_size, float eps, float attention_scale, std::uintptr_t final_norm,
                      bool bf16, const std::string& level) {
    return {{hidden_size, heads, kv_heads, head_dim, intermediate_size, eps, attention_scale},
            pointer<const float>(final_norm), level_of(level),
            bf16 ? rlhf::Element::kBFloat16 : rlhf::Element::kFloat32};
}

void add_layer(rlhf::Decoder& decoder, const std::vector<rlhf::LinearSource>& qkv,
               const std::vector<rlhf::LinearSource>& o, const std::vector<rlhf::LinearSource>& gate_up,
               const std::vector<rlhf::LinearSource>& down, std::uintptr_t attention_norm, std::uintptr_t mlp_norm,
               std::uintptr_t q_norm, std::uintptr_t k_norm, std::int64_t window) {
    decoder.add_layer({qkv, o, gate_up, down, pointer<const float>(attention_norm), pointer<const float>(mlp_norm),
                       pointer<const float>(q_norm), pointer<const float>(k_norm), window});
}

void step(rlhf::Decoder& decoder, std::int64_t rows, std::uintptr_t tokens, std::uintptr_t lengths,
          std::uintptr_t embedding, std::uintptr_t cos, std::uintptr_t sin, const std::vector<std::uintptr_t>& keys,
          const std::vector<std::uintptr_t>& values, std::int64_t length, std::uintptr_t hidden, int threads) {
    std::vector<void*> key_pointers, value_pointers;
    for (const auto address : keys) key_pointers.push_back(pointer<void>(address));
    for (const auto address : values) value_pointers.push_back(pointer<void>(address));
    decoder.step({rows, pointer<const std::int64_t>(tokens), pointer<const std::int64_t>(lengths),
                  pointer<const void>(embedding), pointer<const float>(cos), pointer<const float>(sin),
                  key_pointers.data(), value_pointers.data(), length, pointer<void>(hidden), threads});
}

}  // namespace

void define_decode(py::module_& m) {
    using py::arg;
    const auto release = py::call_guard<py::gil_scoped_release>();
    py::class_<rlhf::LinearSource>(m, "LinearSource")
        .def(py::init(&linear), py::kw_only(), arg("weight"), arg("outputs"), arg("inputs"), arg("stride"),
             arg("bias"), arg("a"), arg("b"), arg("rank"), arg("scale"));
    py::class_<rlhf::Decoder>(m, "Decoder")
        .def(py::init(&decoder), py::kw_only(), arg("hidden_size"), arg("heads"), arg("kv_heads"), arg("head_dim"),
             arg("intermediate_size"), arg("eps"), arg("attention_scale"), arg("final_norm"), arg("bf16"),
             arg("level"))
        .def("add_layer", &add_layer, release, py::kw_only(), arg("qkv"), arg("o"), arg("gate_up"), arg("down"),
             arg("attention_norm"), arg("mlp_norm"), arg("q_norm"), arg("k_norm"), arg("window"))
        .def("step", &step, release, py::kw_only(), arg("rows"), arg("tokens"), arg("lengths"), arg("embedding"),
             arg("cos"), arg("sin"), arg("keys"), arg("values"), arg("length"), arg("hidden"), arg("threads"))
        .def_property_readonly("nbytes", &rlhf::Decoder::bytes);
}
