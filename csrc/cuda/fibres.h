// CUDA's blocks and threads on one CPU thread: each thread of a block is a fibre, which runs until it waits.
//
// __syncthreads, the exchanges of a warp and `grid_sync` are where a fibre waits for the others of its block, warp or
// launch; whoever would wait for ever (a barrier that another thread has left out) ends the program. Shared memory is
// filled with NaN before a block begins. Between two waits one fibre runs alone, and `order` says which comes next: a
// kernel that lacks a barrier gives other results in another order, which the tests run. For tests only: it is slow.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __launch_bounds__(...)
#define SHARED(type, name) type& name = rlhf::cuda::fibres::shared<type>()

namespace rlhf::cuda::fibres {

struct Index {
    unsigned x = 0;
};

struct Barrier {
    int members = 0;
    int arrived = 0;
    std::uint64_t passed = 0;
};

struct Warp {
    Barrier barrier;
    std::uint64_t slots[2][32];  // what the lanes hand to each other, in turns
};

struct Block {
    unsigned index = 0;
    Barrier barrier;
    std::vector<Warp> warps;
    std::unique_ptr<unsigned char[]> shared;
    std::size_t shared_size = 0;
};

struct Fibre {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Block* block = nullptr;
    unsigned thread = 0;
    std::uint64_t exchanges = 0;
    Barrier* waits = nullptr;
    std::uint64_t generation = 0;  // of the barrier that it waits for
    bool done = false;
    void* fake_stack = nullptr;
};

enum class Order { kForward, kBackward, kShuffled };

constexpr std::size_t kStack = 256 * 1024;
constexpr int kResident = 3;  // blocks that run at the same time in `launch_together`

inline Order order = Order::kForward;
inline std::mt19937 generator(0);
inline Index thread_index, block_index, block_size, grid_size;
inline std::vector<Fibre> pool;  // keeps the stacks
inline Fibre* current = nullptr;
inline ucontext_t scheduler;
inline void* scheduler_fake_stack = nullptr;
inline const void* scheduler_stack = nullptr;
inline std::size_t scheduler_stack_size = 0;
inline Barrier grid;
inline const std::function<void()>* body = nullptr;

[[noreturn]] inline void fail(const char* reason) {
    std::fprintf(stderr, "fibres: %s\n", reason);
    std::abort();
}

inline void switch_to(ucontext_t& from, ucontext_t& to, void** keep, const void* stack, std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(keep, stack, size);
#else
    (void)keep, (void)stack, (void)size;
#endif
    swapcontext(&from, &to);
}

inline void arrived(void* fake_stack, bool from_scheduler) {
#if defined(__SANITIZE_ADDRESS__)
    if (from_scheduler) {
        __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_size);
    } else {
        __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
    }
#else
    (void)fake_stack, (void)from_scheduler;
#endif
}

inline void enter() {
    arrived(nullptr, true);
    (*body)();
    current->done = true;
    switch_to(current->context, scheduler, nullptr, scheduler_stack, scheduler_stack_size);  // for the last time
}

inline void wait(Barrier& barrier) {
    if (++barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        ++barrier.passed;
        return;
    }
    Fibre* self = current;
    self->waits = &barrier;
    self->generation = barrier.passed;
    switch_to(self->context, scheduler, &self->fake_stack, scheduler_stack, scheduler_stack_size);
    arrived(self->fake_stack, true);
}

inline void resume(Fibre& fibre) {
    current = &fibre;
    thread_index.x = fibre.thread;
    block_index.x = fibre.block->index;
    fibre.waits = nullptr;
    switch_to(scheduler, fibre.context, &scheduler_fake_stack, fibre.stack.get(), kStack);
    arrived(scheduler_fake_stack, false);
}

// Run the fibres pool[0:count] until all are done.
inline void run(std::size_t count) {
    std::vector<std::size_t> turns(count);
    for (std::size_t i = 0; i < count; ++i) turns[i] = order == Order::kBackward ? count - 1 - i : i;
    for (std::size_t left = count; left > 0;) {
        if (order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), generator);
        bool moved = false;
        for (const std::size_t turn : turns) {
            Fibre& fibre = pool[turn];
            if (fibre.done || (fibre.waits != nullptr && fibre.waits->passed == fibre.generation)) continue;
            resume(fibre);
            moved = true;
            left -= fibre.done;
        }
        if (!moved) fail("every thread waits, some for a thread that never comes: a barrier is left out somewhere");
    }
}

inline Block make_block(unsigned index, int threads) {
    Block block;
    block.index = index;
    block.barrier.members = threads;
    block.warps.resize(static_cast<std::size_t>(threads / 32));
    for (Warp& warp : block.warps) warp.barrier.members = 32;
    return block;
}

inline void prepare(Fibre& fibre, Block& block, unsigned thread) {
    if (!fibre.stack) fibre.stack.reset(new char[kStack]);
    fibre.block = &block;
    fibre.thread = thread;
    fibre.exchanges = 0;
    fibre.done = false;
    fibre.waits = nullptr;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, enter, 0);
}

// Blocks first..first+count at the same time.
inline void run_blocks(int first, int count, int threads) {
    std::vector<Block> blocks;
    for (int i = 0; i < count; ++i) blocks.push_back(make_block(static_cast<unsigned>(first + i), threads));
    const auto each = static_cast<std::size_t>(threads), fibres = blocks.size() * each;
    if (pool.size() < fibres) pool.resize(fibres);
    for (std::size_t i = 0; i < fibres; ++i) prepare(pool[i], blocks[i / each], static_cast<unsigned>(i % each));
    run(fibres);
}

template <typename T>
T& shared() {
    Block& block = *current->block;
    if (!block.shared) {
        block.shared.reset(new unsigned char[sizeof(T)]);
        block.shared_size = sizeof(T);
        std::memset(block.shared.get(), 0xff, sizeof(T));
    }
    if (block.shared_size != sizeof(T)) fail("a kernel has one shared struct");
    return *reinterpret_cast<T*>(block.shared.get());
}

// What lane `source` hands over; a lane that does not exist gives the asking lane's own value.
template <typename T>
T exchange(unsigned lanes, T value, unsigned source) {
    static_assert(sizeof(T) <= 8);
    if (lanes != 0xffffffffu) fail("an exchange has to name all lanes of the warp");
    Warp& warp = current->block->warps[current->thread / 32];
    std::uint64_t* slots = warp.slots[current->exchanges++ % 2];
    std::memcpy(&slots[current->thread % 32], &value, sizeof(T));
    wait(warp.barrier);
    if (source < 32) std::memcpy(&value, &slots[source], sizeof(T));
    return value;
}

template <typename Run>
int start(int blocks, int at_once, int threads, Run&& call) {
    if (blocks <= 0 || threads <= 0 || threads > 1024 || threads % 32 != 0) return 9;  // cudaErrorInvalidConfiguration
    const std::function<void()> job = call;
    body = &job;
    block_size.x = static_cast<unsigned>(threads);
    grid_size.x = static_cast<unsigned>(blocks);
    grid = Barrier{blocks * threads};
    for (int first = 0; first < blocks; first += at_once) run_blocks(first, std::min(at_once, blocks - first), threads);
    return 0;
}

}  // namespace rlhf::cuda::fibres

#define threadIdx rlhf::cuda::fibres::thread_index
#define blockIdx rlhf::cuda::fibres::block_index
#define blockDim rlhf::cuda::fibres::block_size
#define gridDim rlhf::cuda::fibres::grid_size

inline void __syncthreads() { rlhf::cuda::fibres::wait(rlhf::cuda::fibres::current->block->barrier); }

template <typename T>
T __shfl_sync(unsigned lanes, T value, int source) {
    return rlhf::cuda::fibres::exchange(lanes, value, static_cast<unsigned>(source));
}

template <typename T>
T __shfl_up_sync(unsigned lanes, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return rlhf::cuda::fibres::exchange(lanes, value, lane >= by ? lane - by : lane);
}

template <typename T>
T __shfl_down_sync(unsigned lanes, T value, unsigned by) {
    const unsigned lane = threadIdx.x % 32;
    return rlhf::cuda::fibres::exchange(lanes, value, lane + by < 32 ? lane + by : lane);
}

namespace rlhf::cuda {

inline void grid_sync() { fibres::wait(fibres::grid); }

template <typename... P>
int launch(void (*kernel)(P...), int blocks, int threads, void*, std::common_type_t<P>... arguments) {
    return fibres::start(blocks, 1, threads, [=] { kernel(arguments...); });
}

template <typename... P>
int launch_together(void (*kernel)(P...), int blocks, int threads, void*, std::common_type_t<P>... arguments) {
    if (blocks > fibres::kResident) return 720;  // cudaErrorCooperativeLaunchTooLarge
    return fibres::start(blocks, blocks, threads, [=] { kernel(arguments...); });
}

template <typename... P>
int resident_blocks(void (*)(P...), int) {
    return fibres::kResident;
}

inline std::uint16_t half_bits(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    std::uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

}  // namespace rlhf::cuda
