// Tensors arrive as addresses, so that no tensor library is needed to build the module. The caller keeps the memory alive
// and has checked types, lengths and contiguity.
#pragma once

#include <cstdint>

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}
