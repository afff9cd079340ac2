"""The operations in one backend, whatever would be chosen, as functions of keyword arguments."""

from __future__ import annotations

from rlhf_kernels.op import OPS


class ByBackend:
    """`ByBackend("native").gae_(rewards=..., ...)` runs it; an argument that is left out has its default, or None."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, op):
        return lambda **given: OPS[op].backends[self.name].run(arguments(op, **given))

    def refusal(self, op, **given):
        """What its `refusal` says."""
        return OPS[op].backends[self.name].refusal(arguments(op, **given))


def arguments(op, **given):
    kind = OPS[op].arguments
    return kind(**dict.fromkeys(kind._fields) | kind._field_defaults | given)


native, triton, reference = ByBackend("native"), ByBackend("triton"), ByBackend("reference")
