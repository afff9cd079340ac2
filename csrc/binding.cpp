// The Python module rlhf_kernels._native: pointers arrive as integers, so that no tensor library is needed to build it.
// The caller keeps the memory alive and has checked types, lengths and contiguity.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/gae.h"
#include "cpu/linear_logprobs.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <typename T>
void gae(std::uintptr_t rewards, std::uintptr_t values, std::uintptr_t returns, std::uintptr_t cu,
         std::uintptr_t bootstrap, std::int64_t sequences, double gamma, double gamma_lam, int threads) {
    rlhf::gae<T>(pointer<T>(rewards), pointer<const T>(values), pointer<T>(returns),
                 pointer<const std::int32_t>(cu), pointer<const T>(bootstrap), sequences, static_cast<T>(gamma),
                 static_cast<T>(gamma_lam), threads);
}

template <typename T>
void define_gae(py::module_& m, const char* name) {
    m.def(name, &gae<T>, py::call_guard<py::gil_scoped_release>(), py::arg("rewards"), py::arg("values"),
          py::arg("returns"), py::arg("cu"), py::arg("bootstrap"), py::arg("sequences"), py::arg("gamma"),
          py::arg("gamma_lam"), py::arg("threads"));
}

const std::vector<std::pair<std::string, rlhf::Level>> kLevels = {{"portable", rlhf::Level::kPortable},
                                                                  {"avx2", rlhf::Level::kAvx2},
                                                                  {"avx512bf16", rlhf::Level::kAvx512Bf16}};

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const auto& [name, level] : kLevels) {
        if (rlhf::level_available(level)) names.push_back(name);
    }
    return names;
}

rlhf::Level level_of(const std::string& wanted) {
    for (const auto& [name, level] : kLevels) {
        if (name == wanted && rlhf::level_available(level)) return level;
    }
    throw std::invalid_argument("level is '" + wanted + "', expected one of those that levels() lists");
}

struct Scoring {
    rlhf::Scoring scoring;
    rlhf::Compute compute;
};

Scoring make_scoring(std::uintptr_t hidden, std::int64_t hidden_stride, std::uintptr_t weight,
                     std::int64_t weight_stride, std::uintptr_t bias, std::uintptr_t labels, std::int64_t rows,
                     std::int64_t vocabulary, std::int64_t hidden_size, float temperature, float softcap, bool bf16,
                     const std::string& level, int threads) {
    const rlhf::Projection projection{vocabulary, hidden_size, pointer<const float>(bias), temperature, softcap};
    const auto element = bf16 ? rlhf::Element::kBFloat16 : rlhf::Element::kFloat32;
    return {{projection,
             {pointer<const void>(hidden), hidden_stride},
             {pointer<const void>(weight), weight_stride},
             pointer<const std::int64_t>(labels),
             rows},
            {level_of(level), element, threads}};
}

rlhf::Scores scores(std::uintptr_t logprobs, std::uintptr_t entropy, std::uintptr_t max, std::uintptr_t log_sum) {
    return {pointer<float>(logprobs), pointer<float>(entropy), pointer<float>(max), pointer<float>(log_sum)};
}

void linear_logprobs(const Scoring& s, std::uintptr_t logprobs, std::uintptr_t entropy, std::uintptr_t max,
                     std::uintptr_t log_sum) {
    rlhf::linear_logprobs(s.scoring, scores(logprobs, entropy, max, log_sum), s.compute);
}

void linear_logprobs_backward(const Scoring& s, std::uintptr_t logprobs, std::uintptr_t entropy, std::uintptr_t max,
                              std::uintptr_t log_sum, std::uintptr_t d_logprobs, std::uintptr_t d_entropy,
                              std::uintptr_t d_hidden) {
    rlhf::linear_logprobs_backward(s.scoring, scores(logprobs, entropy, max, log_sum),
                                   pointer<const float>(d_logprobs), pointer<const float>(d_entropy),
                                   pointer<void>(d_hidden), s.compute);
}

void policy_reference_logprobs(const Scoring& s, std::uintptr_t ref_hidden, std::int64_t ref_hidden_stride,
                               std::uintptr_t ref_weight, std::int64_t ref_weight_stride, std::uintptr_t logprobs,
                               std::uintptr_t ref_logprobs, std::uintptr_t kl) {
    rlhf::policy_reference_logprobs(s.scoring, {pointer<const void>(ref_hidden), ref_hidden_stride},
                                    {pointer<const void>(ref_weight), ref_weight_stride}, pointer<float>(logprobs),
                                    pointer<float>(ref_logprobs), pointer<float>(kl), s.compute);
}

void define_linear_logprobs(py::module_& m) {
    using py::arg;
    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def("levels", &levels, "Instruction sets that this processor can run, the fastest last.");
    py::class_<Scoring>(m, "Scoring")
        .def(py::init(&make_scoring), py::kw_only(), arg("hidden"), arg("hidden_stride"), arg("weight"),
             arg("weight_stride"), arg("bias"), arg("labels"), arg("rows"), arg("vocabulary"), arg("hidden_size"),
             arg("temperature"), arg("softcap"), arg("bf16"), arg("level"), arg("threads"));
    m.def("linear_logprobs", &linear_logprobs, release, arg("scoring"), arg("logprobs"), arg("entropy"), arg("max"),
          arg("log_sum"));
    m.def("linear_logprobs_backward", &linear_logprobs_backward, release, arg("scoring"), arg("logprobs"),
          arg("entropy"), arg("max"), arg("log_sum"), arg("d_logprobs"), arg("d_entropy"), arg("d_hidden"));
    m.def("policy_reference_logprobs", &policy_reference_logprobs, release, arg("scoring"), arg("ref_hidden"),
          arg("ref_hidden_stride"), arg("ref_weight"), arg("ref_weight_stride"), arg("logprobs"),
          arg("ref_logprobs"), arg("kl"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "C++ kernels on raw pointers; see csrc/.";
#ifdef _OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    define_gae<float>(m, "gae_float32");
    define_gae<double>(m, "gae_float64");
    define_linear_logprobs(m);
}
