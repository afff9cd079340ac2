#include "layers/layers.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/level.h"
#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

using Address = std::uintptr_t;
using Strided = std::tuple<Address, std::int64_t, std::int64_t>;  // address, token stride, head stride

rlhf::LayerCompute compute(const std::string& level, bool bf16, int threads) {
    return {level_of(level), bf16 ? rlhf::Element::kBFloat16 : rlhf::Element::kFloat32, threads};
}

rlhf::Heads heads(const Strided& x) { return {pointer<const void>(std::get<0>(x)), std::get<1>(x), std::get<2>(x)}; }

void rms_norm(Address x, Address weight, Address y, Address rstd, std::int64_t rows, std::int64_t width, float eps,
              const rlhf::LayerCompute& on) {
    rlhf::rms_norm({pointer<const void>(x), pointer<const void>(weight), pointer<void>(y), pointer<float>(rstd), width,
                    eps},
                   rows, on);
}

void rms_norm_backward(Address x, Address weight, Address dy, Address rstd, Address dx, std::int64_t rows,
                       std::int64_t width, const rlhf::LayerCompute& on) {
    rlhf::rms_norm_backward({pointer<const void>(x), pointer<const void>(weight), pointer<const void>(dy),
                             pointer<const float>(rstd), pointer<void>(dx), width},
                            rows, on);
}

void swiglu(Address gate, Address up, Address y, std::int64_t entries, const rlhf::LayerCompute& on) {
    rlhf::swiglu({pointer<const void>(gate), pointer<const void>(up), pointer<void>(y)}, entries, on);
}

void swiglu_backward(Address gate, Address up, Address dy, Address d_gate, Address d_up, std::int64_t entries,
                     const rlhf::LayerCompute& on) {
    rlhf::swiglu_backward({pointer<const void>(gate), pointer<const void>(up), pointer<const void>(dy),
                           pointer<void>(d_gate), pointer<void>(d_up)},
                          entries, on);
}

void rotary(const Strided& x, Address cos, Address sin, std::int64_t angle_stride, Address y, std::int64_t tokens,
            std::int64_t count, std::int64_t head_dim, float direction, const rlhf::LayerCompute& on) {
    const rlhf::Heads in = heads(x);
    rlhf::rotary({in.data, pointer<const void>(cos), pointer<const void>(sin), pointer<void>(y), in.token_stride,
                  in.head_stride, angle_stride, count, head_dim, direction},
                 tokens, on);
}

rlhf::Attention make_attention(const Strided& q, const Strided& k, const Strided& v, std::int64_t heads_,
                               std::int64_t kv_heads, std::int64_t head_dim, std::int64_t tokens, float scale,
                               std::int64_t window) {
    return {heads(q), heads(k), heads(v), heads_, kv_heads, head_dim, tokens, scale, window};
}

void attention(const rlhf::Attention& a, Address out, Address log_sum, const std::vector<std::int64_t>& offsets,
               const rlhf::LayerCompute& on) {
    rlhf::attention({a, pointer<void>(out), pointer<float>(log_sum)}, offsets, on);
}

void attention_backward(const rlhf::Attention& a, const Strided& out, const Strided& d_out, Address log_sum, Address dq,
                        Address dk, Address dv, const std::vector<std::int64_t>& offsets,
                        const rlhf::LayerCompute& on) {
    rlhf::attention_backward({a, heads(out), heads(d_out), pointer<const float>(log_sum), pointer<void>(dq),
                              pointer<void>(dk), pointer<void>(dv)},
                             offsets, on);
}

}  // namespace

void define_layers(py::module_& m) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    py::class_<rlhf::LayerCompute>(m, "LayerCompute")
        .def(py::init(&compute), py::arg("level"), py::arg("bf16"), py::arg("threads"));
    py::class_<rlhf::Attention>(m, "Attention")
        .def(py::init(&make_attention), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("heads"),
             py::arg("kv_heads"), py::arg("head_dim"), py::arg("tokens"), py::arg("scale"), py::arg("window"));
    m.def("rms_norm", &rms_norm, unlocked);
    m.def("rms_norm_backward", &rms_norm_backward, unlocked);
    m.def("swiglu", &swiglu, unlocked);
    m.def("swiglu_backward", &swiglu_backward, unlocked);
    m.def("rotary", &rotary, unlocked);
    m.def("packed_attention", &attention, unlocked);
    m.def("packed_attention_backward", &attention_backward, unlocked);
}
