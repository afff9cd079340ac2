#include "columns/whiten.h"

#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

template <typename T>
void whiten(std::uintptr_t x, std::uintptr_t mask, std::int64_t entries, std::uintptr_t moments, bool shift_mean,
            std::int64_t ddof, double eps, int threads) {
    const auto* const selected = pointer<const std::uint8_t>(mask);
    const auto* const given = pointer<const double>(moments);
    const rlhf::Moments used = given == nullptr ? rlhf::moments<T>(pointer<const T>(x), selected, entries, threads)
                                                : rlhf::Moments{given[0], given[1], given[2]};
    rlhf::whiten<T>(pointer<T>(x), selected, entries, used, {shift_mean, ddof, eps}, threads);
}

template <typename T>
void define_whiten(py::module_& m, const char* name) {
    m.def(name, &whiten<T>, py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("mask"),
          py::arg("entries"), py::arg("moments"), py::arg("shift_mean"), py::arg("ddof"), py::arg("eps"),
          py::arg("threads"));
}

}  // namespace

void define_whiten(py::module_& m) {
    define_whiten<float>(m, "whiten_float32");
    define_whiten<double>(m, "whiten_float64");
}
