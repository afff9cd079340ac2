// The Python module rlhf_kernels._native.
#include "bindings/module.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "C++ kernels on raw pointers; see csrc/.";
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    define_decode(m);
    define_gae(m);
    define_layers(m);
    define_linear_logprobs(m);
    define_lora_linear(m);
    define_moments(m);
    define_ppo_loss(m);
    define_sample(m);
    define_shape_rewards(m);
    define_whiten(m);
}
