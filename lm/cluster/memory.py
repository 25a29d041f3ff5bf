"""How this process keeps host memory."""

import ctypes
import importlib.util
import sys

ACCELERATORS = ("jax_plugins", "libtpu")  # where jax looks for them
# Of malloc.h: M_MMAP_MAX none, M_TRIM_THRESHOLD off, M_ARENA_MAX one heap for all threads.
OPTIONS = ((-4, 0), (-1, -1), (-8, 1))


def keep_freed_memory():
    """Have malloc keep what is freed, if steps run on CPUs; call before jax starts its threads.

    XLA for CPUs allocates the temporaries of a step anew in every step. Blocks as large as those
    glibc gives back to the kernel, which must find and zero every page of them again: a quarter of
    the processor time of a small step. Does nothing where there may be an accelerator, or no glibc.
    """
    if sys.platform != "linux" or any(map(importlib.util.find_spec, ACCELERATORS)):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in OPTIONS:
            libc.mallopt(option, value)
