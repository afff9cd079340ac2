#include "logprobs/logprobs.h"

#include "bindings/bindings.h"

namespace logprobs = rlhf::logprobs;

namespace {

struct Scoring {
    logprobs::Scoring scoring;
    rlhf::Compute compute;
};

Scoring make_scoring(Address hidden, std::int64_t hidden_stride, Address weight, std::int64_t weight_stride,
                     Address bias, Address labels, std::int64_t rows, std::int64_t vocabulary, std::int64_t hidden_size,
                     float temperature, float softcap, bool bf16, const std::string& level, int threads) {
    const logprobs::Projection projection{vocabulary, hidden_size, pointer<const float>(bias), temperature, softcap};
    return {{projection,
             {pointer<const void>(hidden), hidden_stride},
             {pointer<const void>(weight), weight_stride},
             pointer<const std::int64_t>(labels),
             rows},
            compute(level, bf16, threads)};
}

logprobs::Scores scores(Address logprobs, Address entropy, Address max, Address log_sum) {
    return {pointer<float>(logprobs), pointer<float>(entropy), pointer<float>(max), pointer<float>(log_sum)};
}

void linear_logprobs(const Scoring& s, Address logprobs, Address entropy, Address max, Address log_sum) {
    logprobs::linear_logprobs(s.scoring, scores(logprobs, entropy, max, log_sum), s.compute);
}

void linear_logprobs_directions(const Scoring& s, Address logprobs, Address entropy, Address max, Address log_sum,
                                Address directions) {
    logprobs::linear_logprobs_directions(s.scoring, scores(logprobs, entropy, max, log_sum), pointer<float>(directions),
                                         s.compute);
}

void linear_logprobs_backward(const Scoring& s, Address logprobs, Address entropy, Address max, Address log_sum,
                              Address d_logprobs, Address d_entropy, Address d_hidden) {
    logprobs::linear_logprobs_backward(s.scoring, scores(logprobs, entropy, max, log_sum),
                                       pointer<const float>(d_logprobs), pointer<const float>(d_entropy),
                                       pointer<void>(d_hidden), s.compute);
}

void policy_reference_logprobs(const Scoring& s, Address ref_hidden, std::int64_t ref_hidden_stride, Address ref_weight,
                               std::int64_t ref_weight_stride, Address logprobs, Address ref_logprobs, Address kl) {
    logprobs::policy_reference_logprobs(s.scoring, {pointer<const void>(ref_hidden), ref_hidden_stride},
                                        {pointer<const void>(ref_weight), ref_weight_stride}, pointer<float>(logprobs),
                                        pointer<float>(ref_logprobs), pointer<float>(kl), s.compute);
}

void sample(Address hidden, std::int64_t hidden_stride, Address weight, std::int64_t weight_stride, Address bias,
            Address seeds, Address steps, std::int64_t rows, std::int64_t vocabulary, std::int64_t hidden_size,
            float temperature, float softcap, bool bf16, const std::string& level, Address tokens, Address logprobs,
            int threads) {
    const logprobs::Projection projection{vocabulary, hidden_size, pointer<const float>(bias), temperature, softcap};
    logprobs::sample({projection,
                      {pointer<const void>(hidden), hidden_stride},
                      {pointer<const void>(weight), weight_stride},
                      rows,
                      pointer<const std::int64_t>(seeds),
                      pointer<const std::int64_t>(steps)},
                     pointer<std::int64_t>(tokens), pointer<float>(logprobs), compute(level, bf16, threads));
}

}  // namespace

void define_logprobs(py::module_& m) {
    using py::arg;
    py::class_<Scoring>(m, "Scoring")
        .def(py::init(&make_scoring), py::kw_only(), arg("hidden"), arg("hidden_stride"), arg("weight"),
             arg("weight_stride"), arg("bias"), arg("labels"), arg("rows"), arg("vocabulary"), arg("hidden_size"),
             arg("temperature"), arg("softcap"), arg("bf16"), arg("level"), arg("threads"));
    m.def("linear_logprobs", &linear_logprobs, unlocked, arg("scoring"), arg("logprobs"), arg("entropy"), arg("max"),
          arg("log_sum"));
    m.def("linear_logprobs_directions", &linear_logprobs_directions, unlocked, arg("scoring"), arg("logprobs"),
          arg("entropy"), arg("max"), arg("log_sum"), arg("directions"));
    m.def("linear_logprobs_backward", &linear_logprobs_backward, unlocked, arg("scoring"), arg("logprobs"),
          arg("entropy"), arg("max"), arg("log_sum"), arg("d_logprobs"), arg("d_entropy"), arg("d_hidden"));
    m.def("policy_reference_logprobs", &policy_reference_logprobs, unlocked, arg("scoring"), arg("ref_hidden"),
          arg("ref_hidden_stride"), arg("ref_weight"), arg("ref_weight_stride"), arg("logprobs"), arg("ref_logprobs"),
          arg("kl"));
    m.def("sample", &sample, unlocked, py::kw_only(), arg("hidden"), arg("hidden_stride"), arg("weight"),
          arg("weight_stride"), arg("bias"), arg("seeds"), arg("steps"), arg("rows"), arg("vocabulary"),
          arg("hidden_size"), arg("temperature"), arg("softcap"), arg("bf16"), arg("level"), arg("tokens"),
          arg("logprobs"), arg("threads"));
}
