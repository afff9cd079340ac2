#include "layers/layers.h"

#include <tuple>

#include "bindings/bindings.h"

namespace layers = rlhf::layers;

namespace {

using Strided = std::tuple<Address, std::int64_t, std::int64_t>;  // address, token stride, head stride

layers::Heads heads(const Strided& x) { return {pointer<const void>(std::get<0>(x)), std::get<1>(x), std::get<2>(x)}; }

void rms_norm(Address x, Address weight, Address y, Address rstd, std::int64_t rows, std::int64_t width, float eps,
              const rlhf::Compute& on) {
    layers::rms_norm(
        {pointer<const void>(x), pointer<const void>(weight), pointer<void>(y), pointer<float>(rstd), width, eps}, rows,
        on);
}

void rms_norm_backward(Address x, Address weight, Address dy, Address rstd, Address dx, std::int64_t rows,
                       std::int64_t width, const rlhf::Compute& on) {
    layers::rms_norm_backward({pointer<const void>(x), pointer<const void>(weight), pointer<const void>(dy),
                               pointer<const float>(rstd), pointer<void>(dx), width},
                              rows, on);
}

void swiglu(Address gate, Address up, Address y, std::int64_t entries, const rlhf::Compute& on) {
    layers::swiglu({pointer<const void>(gate), pointer<const void>(up), pointer<void>(y)}, entries, on);
}

void swiglu_backward(Address gate, Address up, Address dy, Address d_gate, Address d_up, std::int64_t entries,
                     const rlhf::Compute& on) {
    layers::swiglu_backward({pointer<const void>(gate), pointer<const void>(up), pointer<const void>(dy),
                             pointer<void>(d_gate), pointer<void>(d_up)},
                            entries, on);
}

void rotary(const Strided& x, Address cos, Address sin, std::int64_t angle_stride, Address y, std::int64_t tokens,
            std::int64_t count, std::int64_t head_dim, float direction, const rlhf::Compute& on) {
    const layers::Heads in = heads(x);
    layers::rotary({in.data, pointer<const void>(cos), pointer<const void>(sin), pointer<void>(y), in.token_stride,
                    in.head_stride, angle_stride, count, head_dim, direction},
                   tokens, on);
}

layers::Attention make_attention(const Strided& q, const Strided& k, const Strided& v, std::int64_t heads_,
                                 std::int64_t kv_heads, std::int64_t head_dim, std::int64_t tokens, float scale,
                                 std::int64_t window) {
    return {heads(q), heads(k), heads(v), heads_, kv_heads, head_dim, tokens, scale, window};
}

void attention(const layers::Attention& a, Address out, Address log_sum, const std::vector<std::int64_t>& offsets,
               const rlhf::Compute& on) {
    layers::attention({a, pointer<void>(out), pointer<float>(log_sum)}, offsets, on);
}

void attention_backward(const layers::Attention& a, const Strided& out, const Strided& d_out, Address log_sum,
                        Address dq, Address dk, Address dv, const std::vector<std::int64_t>& offsets,
                        const rlhf::Compute& on) {
    layers::attention_backward({a, heads(out), heads(d_out), pointer<const float>(log_sum), pointer<void>(dq),
                                pointer<void>(dk), pointer<void>(dv)},
                               offsets, on);
}

}  // namespace

void define_layers(py::module_& m) {
    py::class_<rlhf::Compute>(m, "LayerCompute")
        .def(py::init(&compute), py::arg("level"), py::arg("bf16"), py::arg("threads"));
    py::class_<layers::Attention>(m, "Attention")
        .def(py::init(&make_attention), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("heads"), py::arg("kv_heads"),
             py::arg("head_dim"), py::arg("tokens"), py::arg("scale"), py::arg("window"));
    m.def("rms_norm", &rms_norm, unlocked);
    m.def("rms_norm_backward", &rms_norm_backward, unlocked);
    m.def("swiglu", &swiglu, unlocked);
    m.def("swiglu_backward", &swiglu_backward, unlocked);
    m.def("rotary", &rotary, unlocked);
    m.def("packed_attention", &attention, unlocked);
    m.def("packed_attention_backward", &attention_backward, unlocked);
}
