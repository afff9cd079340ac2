#include "logprobs/sample.h"

#include <cstdint>
#include <string>

#include "bindings/level.h"
#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

void sample(std::uintptr_t hidden, std::int64_t hidden_stride, std::uintptr_t weight, std::int64_t weight_stride,
            std::uintptr_t bias, std::uintptr_t seeds, std::uintptr_t steps, std::int64_t rows,
            std::int64_t vocabulary, std::int64_t hidden_size, float temperature, float softcap, bool bf16,
            const std::string& level, std::uintptr_t tokens, std::uintptr_t logprobs, int threads) {
    const rlhf::Projection projection{vocabulary, hidden_size, pointer<const float>(bias), temperature, softcap};
    rlhf::sample({projection,
                  {pointer<const void>(hidden), hidden_stride},
                  {pointer<const void>(weight), weight_stride},
                  rows,
                  pointer<const std::int64_t>(seeds),
                  pointer<const std::int64_t>(steps)},
                 pointer<std::int64_t>(tokens), pointer<float>(logprobs),
                 {level_of(level), bf16 ? rlhf::Element::kBFloat16 : rlhf::Element::kFloat32, threads});
}

}  // namespace

void define_sample(py::module_& m) {
    using py::arg;
    m.def("sample", &sample, py::call_guard<py::gil_scoped_release>(), py::kw_only(), arg("hidden"),
          arg("hidden_stride"), arg("weight"), arg("weight_stride"), arg("bias"), arg("seeds"), arg("steps"),
          arg("rows"), arg("vocabulary"), arg("hidden_size"), arg("temperature"), arg("softcap"), arg("bf16"),
          arg("level"), arg("tokens"), arg("logprobs"), arg("threads"));
}
