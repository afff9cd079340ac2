#include "columns/moments.h"

#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

template <typename T>
void moments(std::uintptr_t x, std::uintptr_t mask, std::int64_t entries, std::uintptr_t out, int threads) {
    const auto [count, mean, m2] =
        rlhf::moments<T>(pointer<const T>(x), pointer<const std::uint8_t>(mask), entries, threads);
    double* const written = pointer<double>(out);
    written[0] = count;
    written[1] = mean;
    written[2] = m2;
}

template <typename T>
void define_moments(py::module_& m, const char* name) {
    m.def(name, &moments<T>, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("mask"),
          py::arg("entries"), py::arg("out"), py::arg("threads"));
}

}  // namespace

void define_moments(py::module_& m) {
    define_moments<float>(m, "moments_float32");
    define_moments<double>(m, "moments_float64");
}
