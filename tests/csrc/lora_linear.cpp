#include "lora/lora_linear.h"

#include "check.h"
#include "common.h"
#include "isa/kernels.h"

namespace lora = rlhf::lora;

namespace {

using Bits = std::vector<std::uint16_t>;

// Integers in [-most, most]: every sum is exact, in whatever order
std::vector<float> integers(std::int64_t count, int most) {
    std::vector<float> found(static_cast<std::size_t>(count));
    for (float& x : found) x = static_cast<float>(static_cast<int>(generator()() % (2 * most + 1)) - most);
    return found;
}

Bits rounded(const std::vector<float>& x) {
    Bits bits;
    for (const float value : x) bits.push_back(rlhf::to_bfloat16(value));
    return bits;
}

void expect_equal(const char* what, double got, double expected) { expect_near<double>(what, got, expected, 0, 0); }

// Rows in two groups, the second without an adapter
void check(std::int64_t rows, std::int64_t inputs, std::int64_t outputs, std::int64_t rank,
           const lora::LoraKernels& kernels) {
    const std::int64_t served = rows - rows / 3;
    const auto x = integers(rows * inputs, 1), weight = integers(outputs * inputs, 1), dy = integers(rows * outputs, 1);
    const auto a = integers(rank * inputs, 1), b = integers(outputs * rank, 1), bias = integers(outputs, 3);
    const Bits x_bits = rounded(x), weight_bits = rounded(weight), dy_bits = rounded(dy);
    Bits scaled_a(a.size()), rounded_b(b.size()), y(dy.size()), dx(x.size());
    Bits inner(static_cast<std::size_t>(rows * rank));
    std::vector<float> da(a.size()), db(b.size());
    const lora::LoraLayer layer{weight_bits.data(),
                                outputs,
                                inputs,
                                inputs,
                                1,
                                {{a.data(), b.data(), scaled_a.data(), rounded_b.data(), rank, 2.0f}},
                                {{0, 0, served}, {-1, served, rows}},
                                rank,
                                &kernels,
                                2};
    lora::lora_linear(layer, x_bits.data(), bias.data(), inner.data(), y.data());
    lora::lora_linear_backward(layer, x_bits.data(), inner.data(), dy_bits.data(), dx.data(), {{da.data(), db.data()}});
    std::vector<double> expected_da(a.size()), expected_db(b.size());
    for (std::int64_t m = 0; m < rows; ++m) {
        std::vector<double> u(static_cast<std::size_t>(rank)), v(u);
        for (std::int64_t r = 0; r < rank && m < served; ++r) {
            for (std::int64_t k = 0; k < inputs; ++k) u[r] += 2.0 * x[m * inputs + k] * a[r * inputs + k];
            for (std::int64_t n = 0; n < outputs; ++n) v[r] += dy[m * outputs + n] * b[n * rank + r];
            for (std::int64_t k = 0; k < inputs; ++k) expected_da[r * inputs + k] += 2 * v[r] * x[m * inputs + k];
            for (std::int64_t n = 0; n < outputs; ++n) expected_db[n * rank + r] += u[r] * dy[m * outputs + n];
        }
        for (std::int64_t n = 0; n < outputs; ++n) {
            double sum = bias[n];
            for (std::int64_t k = 0; k < inputs; ++k) sum += x[m * inputs + k] * weight[n * inputs + k];
            for (std::int64_t r = 0; r < rank; ++r) sum += u[r] * b[n * rank + r];
            expect_equal("y", y[m * outputs + n], rlhf::to_bfloat16(static_cast<float>(sum)));
        }
        for (std::int64_t k = 0; k < inputs; ++k) {
            double sum = 0;
            for (std::int64_t n = 0; n < outputs; ++n) sum += dy[m * outputs + n] * weight[n * inputs + k];
            for (std::int64_t r = 0; r < rank; ++r) sum += 2 * v[r] * a[r * inputs + k];
            expect_equal("dx", dx[m * inputs + k], rlhf::to_bfloat16(static_cast<float>(sum)));
        }
    }
    for (std::size_t i = 0; i < a.size(); ++i) expect_equal("dA", da[i], expected_da[i]);
    for (std::size_t i = 0; i < b.size(); ++i) expect_equal("dB", db[i], expected_db[i]);
}

}  // namespace

void check_lora_linear() {
    const lora::LoraKernels& kernels = rlhf::available_kernels().back()->lora;
    if (kernels.multiply == nullptr) return;
    for (const std::int64_t rows : {1, 33, 290}) {
        for (const std::int64_t inputs : {3, 64}) {
            for (const std::int64_t outputs : {1, 50, 96}) {
                for (const std::int64_t rank : {1, 16, 35}) check(rows, inputs, outputs, rank, kernels);
            }
        }
    }
}
