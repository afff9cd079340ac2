"""What was compiled before is copied: the same text with the same flags by the same compiler, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "csrc" / "compile_once.py"
pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no compiler")

COUNTS = """#!/bin/sh
case " $* " in *" -c "*) echo >> {calls};; esac
exec c++ "$@"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A source with a header, and a compiler that counts what it compiles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_FAST_OBJECTS", str(tmp_path / "kept"))
    Path("value.h").write_text("inline int value() { return 3; }\n")
    Path("main.cpp").write_text('#include "value.h"\nint main() { return value(); }\n')
    Path("counts").write_text(COUNTS.format(calls=tmp_path / "calls"))
    Path("counts").chmod(0o755)
    return tmp_path


def compile_once(*arguments, status=0):
    command = [
        sys.executable,
        str(SCRIPT),
        "./counts",
        *(arguments or ["-O0", "-g0", "-c", "main.cpp", "-o", "made.o"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (status == 0), done.stderr
    return done


def calls():
    return len(Path("calls").read_text().splitlines()) if Path("calls").exists() else 0


def result():
    """What the program of the object returns; the object is removed."""
    compile_once("made.o", "-o", "program")
    Path("made.o").unlink()
    return subprocess.run(["./program"]).returncode


def test_the_same_text_is_compiled_once(project):
    compile_once()
    assert (result(), calls()) == (3, 1)
    compile_once()
    assert (result(), calls()) == (3, 1)


def test_a_changed_header_is_compiled_and_the_old_one_is_still_known(project):
    compile_once()
    Path("value.h").write_text("inline int value() { return 4; }\n")
    compile_once()
    assert calls() == 2 and result() == 4
    Path("value.h").write_text("inline int value() { return 3; }\n")
    compile_once()
    assert calls() == 2 and result() == 3


@pytest.mark.parametrize("flags", [["-O1", "-g0"], ["-O0", "-g0", "-DNDEBUG"], ["-O0", "-g1"]], ids=" ".join)
def test_other_flags_are_compiled(project, flags):
    compile_once()
    compile_once(*flags, "-c", "main.cpp", "-o", "made.o")
    assert calls() == 2


def test_the_folder_of_a_header_does_not_count_and_its_line_does_with_debug_information(project):
    Path("include").mkdir()
    for debug, compiled in (("-g0", 1), ("-g1", 2)):
        Path("calls").unlink(missing_ok=True)
        Path("include/value.h").unlink(missing_ok=True)
        Path("value.h").write_text("inline int value() { return 3; }\n")
        compile_once("-O0", debug, "-c", "main.cpp", "-o", "made.o")
        Path("value.h").rename("include/value.h")
        compile_once("-O0", debug, "-Iinclude", "-c", "main.cpp", "-o", "made.o")
        assert calls() == compiled


def test_another_compiler_compiles(project):
    compile_once()
    Path("counts").write_text(Path("counts").read_text().replace("exec", '[ "$1" = --version ] && echo new\nexec'))
    compile_once()
    assert calls() == 2


def test_an_error_is_the_compilers_and_nothing_is_kept(project):
    Path("main.cpp").write_text("int main() { return nothing; }\n")
    assert "nothing" in compile_once(status=1).stderr
    Path("main.cpp").write_text('#include "absent.h"\n')
    assert "absent.h" in compile_once(status=1).stderr
    assert not Path("kept").exists()


def test_what_nobody_used_for_long_goes(project):
    compile_once()
    (old,) = Path("kept").iterdir()
    os.utime(old, (0, time.time() - 31 * 24 * 3600))
    compile_once("-O1", "-g0", "-c", "main.cpp", "-o", "made.o")
    assert len(list(Path("kept").iterdir())) == 1 and not old.exists()


def test_a_folder_that_cannot_be_written_is_said(project):
    Path("kept").write_text("a file")
    assert "not kept for the next time" in compile_once().stderr
    assert result() == 3
