// What the bindings share. Tensors arrive as addresses, so that no tensor library is needed to build the module: the
// caller keeps the memory alive and has checked types, lengths and contiguity. Python's view of all of it is
// rlhf_kernels/_native.pyi, which a test compares with the module.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common.h"

namespace py = pybind11;

using Address = std::uintptr_t;

constexpr auto unlocked = py::call_guard<py::gil_scoped_release>();  // other Python threads run meanwhile

template <typename T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// One function for columns of float32 and one for columns of float64: NAME_float32 and NAME_float64.
template <typename Float, typename Double, typename... Arguments>
void define_both(py::module_& m, const std::string& name, Float* of_float, Double* of_double,
                 const Arguments&... arguments) {
    m.def((name + "_float32").c_str(), of_float, unlocked, arguments...);
    m.def((name + "_float64").c_str(), of_double, unlocked, arguments...);
}

inline rlhf::Element element(bool bf16) { return bf16 ? rlhf::Element::kBFloat16 : rlhf::Element::kFloat32; }

rlhf::Compute compute(const std::string& level, bool bf16, int threads);  // throws std::invalid_argument for the level

// Each adds an operation's functions and classes to the module.
void define_columns(py::module_& m);
void define_decode(py::module_& m);
void define_layers(py::module_& m);
void define_logprobs(py::module_& m);
void define_lora(py::module_& m);
void define_ppo_loss(py::module_& m);
