// The rows of one head in memory, and scratch memory for what attention makes of them.
#pragma once

#include <cstdint>

#include "layers/kernels.h"

namespace rlhf {
namespace {

inline std::int64_t round_up(std::int64_t x, std::int64_t unit) { return (x + unit - 1) / unit * unit; }

// Hands out parts of a scratch memory, each on a cache line. Without memory it only counts.
class Scratch {
   public:
    explicit Scratch(char* memory) : memory_(memory) {}
    template <class T>
    T* take(std::int64_t count) {
        char* const part = memory_ + used_;
        used_ += round_up(count * static_cast<std::int64_t>(sizeof(T)), 64);
        return reinterpret_cast<T*>(part);
    }
    std::int64_t used() const { return used_; }

   private:
    char* memory_;
    std::int64_t used_ = 0;
};

template <class T>
struct TokenRows {
    const T* data;
    std::int64_t stride;
    const T* row(std::int64_t i) const { return data + i * stride; }
};

template <class T>
inline TokenRows<T> head_rows(const Heads& heads, std::int64_t first_token, std::int64_t head) {
    return {static_cast<const T*>(heads.data) + first_token * heads.token_stride + head * heads.head_stride,
            heads.token_stride};
}

}  // namespace
}  // namespace rlhf
