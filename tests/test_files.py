"""The foundation: packaged files, the data folder, whole writes, lazy imports."""

import errno
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from sobook import errors, files
from sobook.encoder import MICRO

ROOT = Path(__file__).resolve().parent.parent


# --- Packaged files ------------------------------------------------------------------------------


def test_an_installed_package_carries_its_files(tmp_path):
    """As in a wheel: no checkout around the package, and ``_data`` in it."""
    package = tmp_path / "sobook"
    (package / "_data").mkdir(parents=True)
    (package / "_data/recipes.toml").touch()
    for name in ("__init__.py", "errors.py", "files.py", "lazy.py"):
        shutil.copy(ROOT / "sobook" / name, package)
    script = "from sobook import files; print(files.shipped('recipes.toml'), files.data_root())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SOBOOK_DATA": ""}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(package / "_data/recipes.toml"), str(tmp_path / "data")]
    assert list(tmp_path.iterdir()) == [package]  # asking makes no folder


def test_a_wheel_carries_what_is_asked_for():
    packaged = files.read_toml(ROOT / "pyproject.toml")["tool"]["hatch"]["build"]["targets"]
    carried = packaged["wheel"]["force-include"]
    assert all(target == f"sobook/_{source}" for source, target in carried.items())
    assert all((ROOT / source).exists() for source in carried)
    asked = {"benchmarks.toml", "recipes.toml", "paper.toml", f"{MICRO}.safetensors", "studies", "results"}
    assert {f"data/{name}" for name in asked} == set(carried)


def test_a_missing_file_is_named_with_the_remedy():
    with pytest.raises(errors.SobookError, match=r"'recipe.toml' is missing: reinstall sobook"):
        files.shipped("recipe.toml")


# --- The data folder -----------------------------------------------------------------------------


def test_data_root_is_argument_then_setting_then_checkout_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOBOOK_DATA", "/from/setting")
    assert files.data_root("given") == Path("given")
    assert files.data_root() == Path("/from/setting")
    monkeypatch.setenv("SOBOOK_DATA", "")
    assert files.data_root() == ROOT / "data"


def test_data_root_knows_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere/reader")
    assert files.data_root("~/birds") == Path("/nowhere/reader/birds")


# --- Writing -------------------------------------------------------------------------------------


def test_an_error_leaves_what_was_there(tmp_path):
    file = tmp_path / "folder" / "metrics.json"
    files.write_json(file, {"recall": 0.5})
    with pytest.raises(ZeroDivisionError), files.replacing(file) as partial:
        partial.write_text("half of")
        raise ZeroDivisionError
    assert file.read_text() == '{\n  "recall": 0.5\n}\n'
    assert list(file.parent.iterdir()) == [file]


def test_a_full_disk_is_one_sentence(tmp_path):
    file = tmp_path / "metrics.json"
    sentence = r"metrics.json could not be written \(No space left on device\)"
    with pytest.raises(errors.SobookError, match=sentence), files.replacing(file) as partial:
        partial.touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


# --- A torch and torchvision that do not belong together -----------------------------------------


def run_with(folder: Path, *arguments: str, **packages: str) -> subprocess.CompletedProcess:
    """Python in a process where these packages, of one line each, hide those installed."""
    for name, line in packages.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(line + "\n", encoding="utf-8")
    search = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": search}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


NMS = 'raise RuntimeError("operator torchvision::nms does not exist")'


def test_a_torchvision_of_another_torch_is_one_sentence(tmp_path):
    done = run_with(tmp_path, "-c", "from sobook import Encoder", torchvision=NMS)  # the real torch
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert last == (
        f"ImportError: torch {metadata.version('torch')} and torchvision "
        f"{metadata.version('torchvision')} do not work together "
        "(operator torchvision::nms does not exist): reinstall them as a pair with "
        "`pip install --force-reinstall torch torchvision`, then restart Python."
    )
    assert done.stderr.count("Traceback") == 1  # not the error inside an error


@pytest.mark.parametrize(
    "packages, reason",
    [
        ({"torch": "", "torchvision": NMS}, "operator torchvision::nms does not exist"),
        ({"torch": "raise OSError('libcudart.so: no such file')"}, "libcudart.so: no such file"),
        ({"torch": "", "torchvision": "raise ImportError('lost')"}, "lost"),
        ({"torch": "", "torchvision": "import torch; torch.library"}, "no attribute 'library'"),
        ({"torch": "raise RuntimeError('one line\\nand another')"}, "one line"),
        ({"torch": "raise RuntimeError"}, "RuntimeError"),
    ],
)
def test_other_ways_for_the_pair_to_fail(tmp_path, packages, reason):
    done = run_with(tmp_path, "-c", "import sobook; sobook.ProxyAnchor", **packages)
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert "do not work together" in last
    assert f"{reason}): reinstall them as a pair with `pip install" in last
    assert "another" not in done.stderr


def test_a_command_says_it_in_one_sentence(tmp_path):
    done = run_with(tmp_path, "-m", "sobook", "evaluate", torch="", torchvision=NMS)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "reinstall them as a pair with `pip install" in done.stderr


def test_other_errors_are_left_alone(tmp_path):
    done = run_with(tmp_path, "-c", "from sobook import ProxyAnchor", torch="1 / 0")
    assert "ZeroDivisionError" in done.stderr
    assert "reinstall" not in done.stderr


def test_a_missing_torchvision_is_called_missing(tmp_path):
    script = """
import sys
from importlib import metadata

metadata.distributions = lambda: [metadata.distribution("torch")]
sys.modules["torchvision"] = None  # importing it now fails
from sobook import ProxyAnchor
"""
    done = run_with(tmp_path, "-c", script, torch="")
    assert f"torch {metadata.version('torch')} and torchvision (missing)" in done.stderr
    assert "pip install --force-reinstall torch torchvision" in done.stderr


def test_help_needs_neither(tmp_path):
    broken = {"torch": "raise OSError('lost')", "torchvision": NMS}
    done = run_with(tmp_path, "-m", "sobook", "train", "--help", **broken)
    assert done.returncode == 0 and done.stderr == ""
