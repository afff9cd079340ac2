"""The C++ extension, which exists only where a compiler was found when the package was installed.

`native` is the module or None; where it is None, `MISSING` says why and what to do. `LEVEL` is the fastest of the
instruction sets that its kernels come in and the processor has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

try:
    from rlhf_kernels import _native as native
except ImportError as error:
    native = None  # type: ignore[assignment]
    broken = [path for path in Path(__file__).parent.glob("_native.*") if path.suffix in (".so", ".pyd")]
    MISSING: str | None = (
        f"the C++ kernels {f'in {broken[0].name} cannot be loaded ({error})' if broken else 'are not built'}; to have "
        "them, install a C++17 compiler (such as g++) and the Python headers (such as python3-dev), then install "
        "rlhf-fast again with --force-reinstall --no-cache-dir"
    )
    LEVEL = ""
else:
    MISSING = None
    LEVEL = native.levels()[-1]


def cannot_run(args: Mapping[str, Any]) -> str | None:
    """Why the extension cannot take these arguments: it is missing, or a tensor is no contiguous one on a CPU."""
    if MISSING:
        return MISSING
    for name, value in args.items():
        if isinstance(value, Tensor) and not (value.is_cpu and value.is_contiguous()):
            if value.is_cpu:
                return f"{name} is not contiguous; call .contiguous() on it first"
            return f"{name} is on {value.device}, and it runs on CPU tensors only"
    return None
