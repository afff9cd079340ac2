#include "columns/shaping.h"

#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

template <typename T>
void shape_rewards(std::uintptr_t rewards, std::uintptr_t kl, std::int64_t slots, std::uintptr_t scores,
                   std::uintptr_t score_index, std::int64_t sequences, double kl_coef, int threads) {
    rlhf::shape_rewards<T>(pointer<T>(rewards), pointer<const T>(kl), slots, pointer<const T>(scores),
                           pointer<const std::int64_t>(score_index), sequences, static_cast<T>(kl_coef), threads);
}

template <typename T>
void define_shape_rewards(py::module_& m, const char* name) {
    m.def(name, &shape_rewards<T>, py::call_guard<py::gil_scoped_release>(), py::arg("rewards"), py::arg("kl"),
          py::arg("slots"), py::arg("scores"), py::arg("score_index"), py::arg("sequences"), py::arg("kl_coef"),
          py::arg("threads"));
}

}  // namespace

void define_shape_rewards(py::module_& m) {
    define_shape_rewards<float>(m, "shape_rewards_float32");
    define_shape_rewards<double>(m, "shape_rewards_float64");
}
