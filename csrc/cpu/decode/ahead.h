// Touches memory that is read one piece after the other, some way ahead of the reader: further on in the run that is
// read now, or at the beginning of the run that comes next.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/target.h"

namespace rlhf {
namespace {

class Ahead {
   public:
    // `next` may be nullptr.
    Ahead(const void* begin, std::int64_t bytes, const void* next)
        : end_(static_cast<const char*>(begin) + bytes), next_(static_cast<const char*>(next)),
          distance_(std::min(kMost, bytes)) {}

    RLHF_INLINE void touch(const void* here, std::int64_t bytes) const {
        const char* at = static_cast<const char*>(here) + distance_;
        if (at >= end_) {
            if (next_ == nullptr) return;
            at = next_ + (at - end_);
        }
        for (std::int64_t i = 0; i < bytes; i += 64) RLHF_PREFETCH(at + i);
    }

   private:
    static constexpr std::int64_t kMost = 8 << 10;  // memory's latency times its rate, and something to spare
    const char *end_, *next_;
    std::int64_t distance_;
};

}  // namespace
}  // namespace rlhf
