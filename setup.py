"""Builds the optional C++ extension `rlhf_kernels._native` and packs the CUDA sources; the rest is in pyproject.toml.

Needs a C++17 compiler, the Python headers and pybind11, not torch. Where one of them is missing the package installs
without the extension, and one warning says what to do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError

try:
    import pybind11
    from pybind11.setup_helpers import ParallelCompile
except ImportError:
    pybind11 = None
else:
    ParallelCompile().install()  # a file on each core

REMEDY = (
    "rlhf-fast installs without its C++ kernels and uses the slower torch ones: {reason}. To build them, install a "
    "C++17 compiler (such as g++), the Python headers (such as python3-dev) and pybind11, and install again."
)


class OptionalBuildExt(build_ext):
    """Builds for the flags that the compiler takes, or skips the extension where there is no working compiler."""

    def build_extensions(self) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        standard, openmp = ("/std:c++17", "/openmp") if msvc else ("-std=c++17", "-fopenmp")
        if pybind11 is None:
            return self._skip("pybind11 is not installed")
        if not (self._compiles("probe.c", []) and self._compiles("probe.cpp", [standard])):  # CC and CXX both count
            return self._skip("no working C++17 compiler with the Python headers was found")
        flags = [openmp] if self._compiles("probe.cpp", [standard, openmp]) else []
        for extension in self.extensions:
            extension.include_dirs = ["csrc", pybind11.get_include()]
            extension.extra_compile_args = [standard, *flags, *([] if msvc else ["-O3", "-g0", "-fvisibility=hidden"])]
            extension.extra_link_args = [] if msvc else flags
        super().build_extensions()

    def _skip(self, reason: str) -> None:
        self.warn(REMEDY.format(reason=reason))
        self.extensions = []

    def _compiles(self, name: str, flags: list[str]) -> bool:
        """Whether a trivial extension compiles and links with these flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, name)
            source.write_text("#include <Python.h>\nint probe(void) { return 0; }\n")
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, include_dirs=self.include_dirs, extra_postargs=flags
                )
                link_flags = [] if self.compiler.compiler_type == "msvc" else flags
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=link_flags, target_lang="c++"
                )
            except (CompileError, LinkError):
                return False
        return True


class BuildWithCudaSources(build_py):
    """Puts the sources of csrc/cuda into the package: nvcc compiles them on first use, on the machine with the GPU."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "rlhf_kernels", "csrc", "cuda")
            self.mkpath(str(target))
            for source in Path("csrc", "cuda").iterdir():
                self.copy_file(str(source), str(target / source.name))


setup(
    ext_modules=[
        Extension(
            "rlhf_kernels._native",
            sources=sorted(map(str, Path("csrc").rglob("*.cpp"))),
            depends=sorted(map(str, Path("csrc").rglob("*.h"))),
            language="c++",
        )
    ],
    cmdclass={"build_ext": OptionalBuildExt, "build_py": BuildWithCudaSources},
)
