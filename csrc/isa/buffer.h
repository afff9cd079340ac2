// Scratch memory on a cache line boundary, uninitialised.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace rlhf {

template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(std::int64_t count)
        : memory_(static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), kLine))) {}
    T* data() const { return memory_.get(); }

   private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* p) const { ::operator delete(p, kLine); }
    };
    std::unique_ptr<T, Free> memory_;
};

}  // namespace rlhf
