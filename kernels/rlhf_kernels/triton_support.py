"""Whether the Triton kernels can run here; nothing is imported from Triton before that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cannot_run(args: Mapping[str, Any]) -> str | None:
    return "not merged"
