#include "columns/columns.h"

#include "bindings/bindings.h"

namespace columns = rlhf::columns;

namespace {

template <typename T>
void shape_rewards(Address rewards, Address kl, std::int64_t slots, Address scores, Address score_index,
                   std::int64_t sequences, double kl_coef, int threads) {
    columns::shape_rewards<T>(pointer<T>(rewards), pointer<const T>(kl), slots, pointer<const T>(scores),
                              pointer<const std::int64_t>(score_index), sequences, static_cast<T>(kl_coef), threads);
}

template <typename T>
void define_shape_rewards(py::module_& m, const char* name) {
    m.def(name, &shape_rewards<T>, unlocked, py::arg("rewards"), py::arg("kl"),
          py::arg("slots"), py::arg("scores"), py::arg("score_index"), py::arg("sequences"), py::arg("kl_coef"),
          py::arg("threads"));
}

template <typename T>
void gae(Address rewards, Address values, Address returns, Address cu, Address bootstrap, std::int64_t sequences,
         double gamma, double gamma_lam, int threads) {
    columns::gae<T>(pointer<T>(rewards), pointer<const T>(values), pointer<T>(returns), pointer<const std::int32_t>(cu),
                    pointer<const T>(bootstrap), sequences, static_cast<T>(gamma), static_cast<T>(gamma_lam), threads);
}

template <typename T>
void define_gae(py::module_& m, const char* name) {
    m.def(name, &gae<T>, unlocked, py::arg("rewards"), py::arg("values"),
          py::arg("returns"), py::arg("cu"), py::arg("bootstrap"), py::arg("sequences"), py::arg("gamma"),
          py::arg("gamma_lam"), py::arg("threads"));
}

template <typename T>
void moments(Address x, Address mask, std::int64_t entries, Address out, int threads) {
    const auto [count, mean, m2] =
        columns::moments<T>(pointer<const T>(x), pointer<const std::uint8_t>(mask), entries, threads);
    double* const written = pointer<double>(out);
    written[0] = count;
    written[1] = mean;
    written[2] = m2;
}

template <typename T>
void define_moments(py::module_& m, const char* name) {
    m.def(name, &moments<T>, unlocked, py::arg("x"), py::arg("mask"),
          py::arg("entries"), py::arg("out"), py::arg("threads"));
}

template <typename T>
void whiten(Address x, Address mask, std::int64_t entries, Address moments, bool shift_mean, std::int64_t ddof,
            double eps, int threads) {
    const auto* const selected = pointer<const std::uint8_t>(mask);
    const auto* const given = pointer<const double>(moments);
    const columns::Moments used = given == nullptr
                                      ? columns::moments<T>(pointer<const T>(x), selected, entries, threads)
                                      : columns::Moments{given[0], given[1], given[2]};
    columns::whiten<T>(pointer<T>(x), selected, entries, used, {shift_mean, ddof, eps}, threads);
}

template <typename T>
void define_whiten(py::module_& m, const char* name) {
    m.def(name, &whiten<T>, unlocked, py::arg("x"), py::arg("mask"), py::arg("entries"),
          py::arg("moments"), py::arg("shift_mean"), py::arg("ddof"), py::arg("eps"), py::arg("threads"));
}

}  // namespace

void define_columns(py::module_& m) {
    define_shape_rewards<float>(m, "shape_rewards_float32");
    define_shape_rewards<double>(m, "shape_rewards_float64");
    define_gae<float>(m, "gae_float32");
    define_gae<double>(m, "gae_float64");
    define_moments<float>(m, "moments_float32");
    define_moments<double>(m, "moments_float64");
    define_whiten<float>(m, "whiten_float32");
    define_whiten<double>(m, "whiten_float64");
}
