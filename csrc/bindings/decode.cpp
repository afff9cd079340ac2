#include "decode/decoder.h"

#include "bindings/bindings.h"
#include "isa/kernels.h"

namespace decode = rlhf::decode;

namespace {

decode::LinearSource linear(Address weight, std::int64_t outputs, std::int64_t inputs, std::int64_t stride,
                            Address bias, Address a, Address b, std::int64_t rank, float scale) {
    return {pointer<const void>(weight), outputs, inputs, stride, pointer<const float>(bias), pointer<const float>(a),
            pointer<const float>(b),     rank,    scale};
}

decode::Decoder decoder(std::int64_t hidden_size, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                        std::int64_t intermediate_size, float eps, float attention_scale, Address final_norm, bool bf16,
                        const std::string& level) {
    return {{hidden_size, heads, kv_heads, head_dim, intermediate_size, eps, attention_scale},
            pointer<const float>(final_norm),
            rlhf::kernels_of(level),
            element(bf16)};
}

void add_layer(decode::Decoder& decoder, const std::vector<decode::LinearSource>& qkv,
               const std::vector<decode::LinearSource>& o, const std::vector<decode::LinearSource>& gate_up,
               const std::vector<decode::LinearSource>& down, Address attention_norm, Address mlp_norm, Address q_norm,
               Address k_norm, std::int64_t window) {
    decoder.add_layer({qkv, o, gate_up, down, pointer<const float>(attention_norm), pointer<const float>(mlp_norm),
                       pointer<const float>(q_norm), pointer<const float>(k_norm), window});
}

void step(decode::Decoder& decoder, std::int64_t rows, Address tokens, Address lengths, Address embedding, Address cos,
          Address sin, const std::vector<Address>& keys, const std::vector<Address>& values, std::int64_t length,
          Address hidden, int threads) {
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
    py::class_<decode::LinearSource>(m, "LinearSource")
        .def(py::init(&linear), py::kw_only(), arg("weight"), arg("outputs"), arg("inputs"), arg("stride"), arg("bias"),
             arg("a"), arg("b"), arg("rank"), arg("scale"));
    py::class_<decode::Decoder>(m, "Decoder")
        .def(py::init(&decoder), py::kw_only(), arg("hidden_size"), arg("heads"), arg("kv_heads"), arg("head_dim"),
             arg("intermediate_size"), arg("eps"), arg("attention_scale"), arg("final_norm"), arg("bf16"), arg("level"))
        .def("add_layer", &add_layer, unlocked, py::kw_only(), arg("qkv"), arg("o"), arg("gate_up"), arg("down"),
             arg("attention_norm"), arg("mlp_norm"), arg("q_norm"), arg("k_norm"), arg("window"))
        .def("step", &step, unlocked, py::kw_only(), arg("rows"), arg("tokens"), arg("lengths"), arg("embedding"),
             arg("cos"), arg("sin"), arg("keys"), arg("values"), arg("length"), arg("hidden"), arg("threads"))
        .def_property_readonly("nbytes", &decode::Decoder::bytes);
}
