"""The C++ extension, which exists only where a compiler was found when the package was installed.

`native` is the module or None; where it is None, `MISSING` says why and what to do.
"""

from __future__ import annotations

try:
    from rlhf_kernels import _native as native
except ImportError as error:
    native = None  # type: ignore[assignment]
    MISSING: str | None = (
        f"the C++ extension is not available ({error}); to build it, install a C++17 compiler and the "
        "Python headers and reinstall rlhf-fast from source"
    )
else:
    MISSING = None
