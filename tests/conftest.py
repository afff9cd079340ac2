"""The order of the tests: the long ones first, so that none is left to one process when the others are done."""

from __future__ import annotations

LONG = (
    "test_plan_measured.py",
    "test_sanitizers.py",
    "test_triton_interpreted.py",
    "test_vs_trl.py",
    "test_wheel.py",
    "test_aot.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)
