"""What a process gives back to the system."""

import ctypes
import platform

import psutil
import pytest

from rlhf_fast.runtime.memory import trim_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_freed_blocks_below_one_that_is_held_go_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size, process = 100_000, psutil.Process()  # too small for a mapping of its own, whatever the threshold is
    blocks = [libc.malloc(size) for _ in range(2000)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last one keeps the end of the heap
        libc.free(block)
    before = process.memory_info().rss
    trim_memory()
    assert before - process.memory_info().rss > 150e6  # of 200 MB
    libc.free(blocks[-1])
