// One function for each operation that adds its kernels to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace py = pybind11;

void define_decode(py::module_& m);
void define_gae(py::module_& m);
void define_layers(py::module_& m);
void define_linear_logprobs(py::module_& m);
void define_lora_linear(py::module_& m);
void define_moments(py::module_& m);
void define_ppo_loss(py::module_& m);
void define_sample(py::module_& m);
void define_shape_rewards(py::module_& m);
void define_whiten(py::module_& m);
