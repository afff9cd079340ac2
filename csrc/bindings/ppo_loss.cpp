#include "ppo_loss/ppo_loss.h"

#include <optional>

#include "bindings/bindings.h"
#include "isa/kernels.h"

namespace ppo = rlhf::ppo;

namespace {

const double* address(const std::optional<double>& number) { return number ? &*number : nullptr; }

template <typename T>
void ppo_loss(Address logprobs, Address old_logprobs, Address advantages, Address values, Address old_values,
              Address returns, Address entropy, Address weight, Address mask, Address value_mask, std::int64_t slots,
              double cliprange, double cliprange_value, double vf_coef, double entropy_coef, double dual_clip,
              double log_ratio_clamp, std::optional<double> denominator, std::optional<double> value_denominator,
              Address metrics, Address d_logprobs, Address d_values, Address d_entropy, const std::string& level,
              int threads) {
    const ppo::PPOColumns<T> columns{pointer<const T>(logprobs),
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
    const ppo::PPOSettings settings{cliprange,
                                    cliprange_value,
                                    vf_coef,
                                    entropy_coef,
                                    dual_clip,
                                    log_ratio_clamp,
                                    address(denominator),
                                    address(value_denominator)};
    ppo::ppo_loss<T>(columns, settings,
                     {pointer<T>(metrics), pointer<T>(d_logprobs), pointer<T>(d_values), pointer<T>(d_entropy)},
                     rlhf::kernels_of(level), threads);
}

}  // namespace

void define_ppo_loss(py::module_& m) {
    using py::arg;
    define_both(m, "ppo_loss", ppo_loss<float>, ppo_loss<double>, py::kw_only(), arg("logprobs"), arg("old_logprobs"),
                arg("advantages"), arg("values"), arg("old_values"), arg("returns"), arg("entropy"), arg("weight"),
                arg("mask"), arg("value_mask"), arg("slots"), arg("cliprange"), arg("cliprange_value"), arg("vf_coef"),
                arg("entropy_coef"), arg("dual_clip"), arg("log_ratio_clamp"), arg("denominator"),
                arg("value_denominator"), arg("metrics"), arg("d_logprobs"), arg("d_values"), arg("d_entropy"),
                arg("level"), arg("threads"));
}
