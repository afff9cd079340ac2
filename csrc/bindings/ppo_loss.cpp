#include "ppo_loss/ppo_loss.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/level.h"
#include "bindings/module.h"
#include "bindings/pointer.h"

namespace {

const double* address(const std::optional<double>& number) { return number ? &*number : nullptr; }

template <typename T>
void ppo_loss(std::uintptr_t logprobs, std::uintptr_t old_logprobs, std::uintptr_t advantages, std::uintptr_t values,
              std::uintptr_t old_values, std::uintptr_t returns, std::uintptr_t entropy, std::uintptr_t weight,
              std::uintptr_t mask, std::uintptr_t value_mask, std::int64_t slots, double cliprange,
              double cliprange_value, double vf_coef, double entropy_coef, double dual_clip, double log_ratio_clamp,
              std::optional<double> denominator, std::optional<double> value_denominator, std::uintptr_t metrics,
              std::uintptr_t d_logprobs, std::uintptr_t d_values, std::uintptr_t d_entropy, const std::string& level,
              int threads) {
    const rlhf::PPOColumns<T> columns{pointer<const T>(logprobs),
                                      pointer<const T>(old_logprobs),
                                      pointer<const T>(advantages),
                                      pointer<const T>(values),
                                      pointer<const T>(old_values),
                                      pointer<const T>(returns),
                                      pointer<const T>(entropy),
                                      pointer<const T>(weight),
                                      pointer<const std::uint8_t>(mask),
                                      pointer<const std::uint8_t>(value_mask),
                                      slots};
    const rlhf::PPOSettings settings{cliprange,    cliprange_value, vf_coef,
                                     entropy_coef, dual_clip,       log_ratio_clamp,
                                     address(denominator),          address(value_denominator)};
    rlhf::ppo_loss<T>(columns, settings,
                      {pointer<T>(metrics), pointer<T>(d_logprobs), pointer<T>(d_values), pointer<T>(d_entropy)},
                      level_of(level), threads);
}

template <typename T>
void define_ppo_loss(py::module_& m, const char* name) {
    using py::arg;
    m.def(name, &ppo_loss<T>, py::call_guard<py::gil_scoped_release>(), py::kw_only(), arg("logprobs"),
          arg("old_logprobs"), arg("advantages"), arg("values"), arg("old_values"), arg("returns"), arg("entropy"),
          arg("weight"), arg("mask"), arg("value_mask"), arg("slots"), arg("cliprange"), arg("cliprange_value"),
          arg("vf_coef"), arg("entropy_coef"), arg("dual_clip"), arg("log_ratio_clamp"), arg("denominator"),
          arg("value_denominator"), arg("metrics"), arg("d_logprobs"), arg("d_values"), arg("d_entropy"),
          arg("level"), arg("threads"));
}

}  // namespace

void define_ppo_loss(py::module_& m) {
    define_ppo_loss<float>(m, "ppo_loss_float32");
    define_ppo_loss<double>(m, "ppo_loss_float64");
}
