// Columns in heap memory of exactly their size, so that a sanitizer sees a kernel reach beyond them, and comparisons that
// end the program.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

using Mask = std::vector<std::uint8_t>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

inline std::mt19937& generator() {
    static std::mt19937 g(0);
    return g;
}

template <typename T>
std::vector<T> normal(std::int64_t entries) {
    std::normal_distribution<double> distribution;
    std::vector<T> column(static_cast<std::size_t>(entries));
    for (T& entry : column) entry = static_cast<T>(distribution(generator()));
    return column;
}

inline Mask random_mask(std::int64_t entries) {
    Mask mask(static_cast<std::size_t>(entries));
    for (auto& byte : mask) byte = generator()() % 4 != 0;
    return mask;
}

// An error of at most `roundings` roundings in T of `scale`
template <typename T>
void expect_near(const char* what, double got, double expected, double scale = 1, double roundings = 64) {
    const double allowed = roundings * std::numeric_limits<T>::epsilon() * (scale + std::abs(expected));
    if (std::abs(got - expected) <= allowed) return;
    std::fprintf(stderr, "%s is %.9g, expected %.9g\n", what, got, expected);
    std::exit(1);
}

void check_gae();
void check_shaping();
void check_moments_and_whitening();
void check_ppo_loss();
void check_linear_logprobs();
void check_decode();
void check_sample();
void check_layers();
void check_lora_linear();
void check_cuda();
