// What every operation starts from: the elements of its tensors, scratch memory, how many threads are worth waking, and
// what a call runs on.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace rlhf {

enum class Element { kFloat32, kBFloat16 };

struct Kernels;  // the table of an instruction set: isa/kernels.h

struct Compute {
    const Kernels* kernels;
    Element element;  // of the tensors
    int threads;      // at most
};

constexpr std::int64_t divide_up(std::int64_t x, std::int64_t by) { return (x + by - 1) / by; }
constexpr std::int64_t round_up(std::int64_t x, std::int64_t unit) { return divide_up(x, unit) * unit; }

// As many threads as have `slots_each` slots to work on, so that none is woken for less; at least 1, at most `threads`.
inline int useful_team(std::int64_t slots, std::int64_t slots_each, int threads) {
    return static_cast<int>(std::clamp<std::int64_t>(slots / slots_each, 1, std::max(threads, 1)));
}

// Bytes of scratch memory that are held now, and the most since `restart`: for who measures a run's memory.
class ScratchCount {
   public:
    void add(std::int64_t bytes) {
        const std::int64_t held = held_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
        std::int64_t peak = peak_.load(std::memory_order_relaxed);
        while (held > peak && !peak_.compare_exchange_weak(peak, held, std::memory_order_relaxed)) {}
    }
    std::int64_t held() const { return held_.load(std::memory_order_relaxed); }
    std::int64_t peak() const { return peak_.load(std::memory_order_relaxed); }
    void restart() { peak_.store(held(), std::memory_order_relaxed); }

   private:
    std::atomic<std::int64_t> held_{0}, peak_{0};
};

inline ScratchCount scratch_count;

// Scratch memory on a cache line boundary, uninitialised.
template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(std::int64_t count) : Buffer(static_cast<std::size_t>(count) * sizeof(T), nullptr) {}
    T* data() const { return memory_.get(); }

   private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        std::size_t bytes = 0;
        void operator()(T* p) const {
            ::operator delete(p, kLine);
            scratch_count.add(-static_cast<std::int64_t>(bytes));
        }
    };
    Buffer(std::size_t bytes, std::nullptr_t) : memory_(static_cast<T*>(::operator new(bytes, kLine)), Free{bytes}) {
        scratch_count.add(static_cast<std::int64_t>(bytes));
    }
    std::unique_ptr<T, Free> memory_;
};

// bfloat16 is the upper half of a float. The namespace is unnamed, so that each source file has its own functions, for
// its own instruction set.
namespace {

inline float to_float(float x) { return x; }

inline float to_float(std::uint16_t bits) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
}

inline std::uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace rlhf
