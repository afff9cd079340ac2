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
void gae(Address rewards, Address values, Address returns, Address cu_responses, Address bootstrap,
         std::int64_t sequences, double gamma, double gamma_lam, int threads) {
    columns::gae<T>(pointer<T>(rewards), pointer<const T>(values), pointer<T>(returns),
                    pointer<const std::int32_t>(cu_responses), pointer<const T>(bootstrap), sequences,
                    static_cast<T>(gamma), static_cast<T>(gamma_lam), threads);
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
void whiten(Address x, Address mask, std::int64_t entries, Address moments, bool shift_mean, std::int64_t ddof,
            double eps, int threads) {
    const auto* const selected = pointer<const std::uint8_t>(mask);
    const auto* const given = pointer<const double>(moments);
    const columns::Moments used = given == nullptr
                                      ? columns::moments<T>(pointer<const T>(x), selected, entries, threads)
                                      : columns::Moments{given[0], given[1], given[2]};
    columns::whiten<T>(pointer<T>(x), selected, entries, used, {shift_mean, ddof, eps}, threads);
}

}  // namespace

void define_columns(py::module_& m) {
    using py::arg;
    define_both(m, "shape_rewards", shape_rewards<float>, shape_rewards<double>, arg("rewards"), arg("kl"),
                arg("slots"), arg("scores"), arg("score_index"), arg("sequences"), arg("kl_coef"), arg("threads"));
    define_both(m, "gae", gae<float>, gae<double>, arg("rewards"), arg("values"), arg("returns"), arg("cu_responses"),
                arg("bootstrap"), arg("sequences"), arg("gamma"), arg("gamma_lam"), arg("threads"));
    define_both(m, "moments", moments<float>, moments<double>, arg("x"), arg("mask"), arg("entries"), arg("out"),
                arg("threads"));
    define_both(m, "whiten", whiten<float>, whiten<double>, arg("x"), arg("mask"), arg("entries"), arg("moments"),
                arg("shift_mean"), arg("ddof"), arg("eps"), arg("threads"));
}
