#include "columns/gae.h"

#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

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

}  // namespace

void define_gae(py::module_& m) {
    define_gae<float>(m, "gae_float32");
    define_gae<double>(m, "gae_float64");
}
