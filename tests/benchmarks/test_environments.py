"""Virtual environments of the benchmarks."""

from __future__ import annotations

import subprocess
import venv
from importlib.metadata import version

import pytest

from benchmarks import environments


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """What is run in place of pip."""
    ran: list[list[str]] = []
    monkeypatch.setattr(venv, "create", lambda folder, **_: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    return ran


def test_torch_comes_first_in_the_version_that_runs_here(commands, tmp_path):
    folder = tmp_path / "env"
    python = environments.make(folder, ["a==1", "b"])
    torch = f"torch=={version('torch').partition('+')[0]}"
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    assert commands == [[*install, torch], [*install, "a==1", "b"]]
    assert python == folder / "bin" / "python"


def test_an_environment_is_made_once(commands, tmp_path):
    environments.make(tmp_path, ["a"])
    environments.make(tmp_path, ["a"])
    assert len(commands) == 2


def test_a_failed_installation_leaves_no_environment(commands, tmp_path, monkeypatch):
    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        environments.make(tmp_path, ["a"])
    assert not environments.is_made(tmp_path)
