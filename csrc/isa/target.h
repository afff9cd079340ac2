// RLHF_TARGET is defined by each source file before it includes these headers: the instruction set to compile them for.
// Everything they define is in an unnamed namespace, so that no function leaks from one instruction set into another.
#pragma once

#ifndef RLHF_TARGET
#error "define RLHF_TARGET first"
#endif

#ifdef __GNUC__
#define RLHF_INLINE RLHF_TARGET inline __attribute__((always_inline))
#define RLHF_UNROLL _Pragma("GCC unroll 16")
#define RLHF_PREFETCH(address) __builtin_prefetch(address, 0, 2)
#else
#define RLHF_INLINE inline
#define RLHF_UNROLL
#define RLHF_PREFETCH(address)
#endif
