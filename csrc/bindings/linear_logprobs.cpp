#include "logprobs/logprobs.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>

#include "bindings/level.h"
#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

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

void linear_logprobs_directions(const Scoring& s, std::uintptr_t logprobs, std::uintptr_t entropy, std::uintptr_t max,
                                std::uintptr_t log_sum, std::uintptr_t directions) {
    rlhf::linear_logprobs_directions(s.scoring, scores(logprobs, entropy, max, log_sum), pointer<float>(directions),
                                     s.compute);
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

}  // namespace

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
    m.def("linear_logprobs_directions", &linear_logprobs_directions, release, arg("scoring"), arg("logprobs"),
          arg("entropy"), arg("max"), arg("log_sum"), arg("directions"));
    m.def("linear_logprobs_backward", &linear_logprobs_backward, release, arg("scoring"), arg("logprobs"),
          arg("entropy"), arg("max"), arg("log_sum"), arg("d_logprobs"), arg("d_entropy"), arg("d_hidden"));
    m.def("policy_reference_logprobs", &policy_reference_logprobs, release, arg("scoring"), arg("ref_hidden"),
          arg("ref_hidden_stride"), arg("ref_weight"), arg("ref_weight_stride"), arg("logprobs"),
          arg("ref_logprobs"), arg("kl"));
}
