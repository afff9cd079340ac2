// The Python module rlhf_kernels._native.
#include "bindings/bindings.h"
#include "isa/kernels.h"

namespace {

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const rlhf::Kernels* kernels : rlhf::available_kernels()) names.emplace_back(kernels->level);
    return names;
}

}  // namespace

rlhf::Compute compute(const std::string& level, bool bf16, int threads) {
    return {&rlhf::kernels_of(level), element(bf16), threads};
}

PYBIND11_MODULE(_native, m) {
    m.doc() = "C++ kernels on raw pointers; see csrc/.";
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("levels", &levels, "Instruction sets that this processor can run, the fastest last.");
    m.def("scratch_held", [] { return rlhf::scratch_count.held(); }, "Bytes of scratch memory that are held now.");
    m.def("scratch_peak", [] { return rlhf::scratch_count.peak(); }, "The most of them since restart_scratch_peak.");
    m.def("restart_scratch_peak", [] { rlhf::scratch_count.restart(); });
    define_columns(m);
    define_decode(m);
    define_layers(m);
    define_logprobs(m);
    define_lora(m);
    define_ppo_loss(m);
}
