// Memory for packed weights, in large chunks that the system may map with huge pages: a decode step reads all of it,
// and with small pages it waits for address translation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rlhf {

class Arena {
   public:
    char* take(std::int64_t bytes) {  // on a cache line boundary, uninitialised, alive as long as the arena
        bytes = (bytes + 63) / 64 * 64;
        if (chunks_.empty() || used_ + bytes > size_) add_chunk(std::max(bytes, kChunkBytes));
        used_ += bytes;
        return chunks_.back().get() + used_ - bytes;
    }

   private:
    static constexpr std::int64_t kChunkBytes = 64 << 20;  // what is never written takes no memory
    static constexpr std::align_val_t kHugePage{2 << 20};
    struct Free {
        void operator()(char* p) const { ::operator delete(p, kHugePage); }
    };

    void add_chunk(std::int64_t bytes) {
        size_ = bytes, used_ = 0;
        chunks_.emplace_back(static_cast<char*>(::operator new(static_cast<std::size_t>(bytes), kHugePage)));
#ifdef MADV_HUGEPAGE
        madvise(chunks_.back().get(), static_cast<std::size_t>(bytes), MADV_HUGEPAGE);  // a wish: it may be refused
#endif
    }

    std::vector<std::unique_ptr<char, Free>> chunks_;
    std::int64_t size_ = 0, used_ = 0;
};

}  // namespace rlhf
