"""Finding packaged files and the data folder, near matches, and what `import sobook` says."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from sobook import errors, files

ROOT = Path(__file__).resolve().parent.parent


# --- Packaged files ------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout that holds nothing but an empty package."""
    (tmp_path / "sobook").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "sobook")
    monkeypatch.setattr(files, "_CHECKOUT", tmp_path)
    return tmp_path


def test_the_manifest_is_found():
    assert files.shipped("benchmarks.toml").is_file()


def test_files_lie_in_data_in_a_checkout_and_in_the_package_when_installed(checkout):
    (checkout / "data").mkdir()
    (checkout / "data/recipes.toml").touch()
    assert files.shipped("recipes.toml") == checkout / "data/recipes.toml"
    (checkout / "sobook/_data").mkdir()
    (checkout / "sobook/_data/recipes.toml").touch()
    assert files.shipped("recipes.toml") == checkout / "sobook/_data/recipes.toml"


def test_a_missing_file_is_named_with_the_remedy(checkout):
    with pytest.raises(FileNotFoundError, match=r"'recipes.toml' is missing: reinstall sobook"):
        files.shipped("recipes.toml")


# --- The data folder -----------------------------------------------------------------------------


def test_data_root_is_argument_then_setting_then_checkout_then_here(checkout, monkeypatch):
    elsewhere = checkout / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("SOBOOK_DATA", "/from/setting")
    assert files.data_root("given") == Path("given")
    assert files.data_root(Path("given")) == Path("given")
    assert files.data_root() == Path("/from/setting")
    for nothing in ("", None):
        if nothing is None:
            monkeypatch.delenv("SOBOOK_DATA")
        else:
            monkeypatch.setenv("SOBOOK_DATA", nothing)
        assert files.data_root() == checkout / "data"
    (checkout / "pyproject.toml").unlink()  # installed: no checkout around the package
    assert files.data_root() == elsewhere / "data"
    assert list(elsewhere.iterdir()) == []  # asking makes no folder


def test_data_root_knows_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere/reader")
    monkeypatch.setenv("USERPROFILE", "/nowhere/reader")
    assert files.data_root("~/birds") == Path("/nowhere/reader/birds")
    monkeypatch.setenv("SOBOOK_DATA", "~/birds")
    assert files.data_root() == Path("/nowhere/reader/birds")


# --- Near matches --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, near",
    [("cub20", "cub200"), ("aviari", "aviary"), ("car196", "cars196"), ("inshop ", "inshop")],
)
def test_suggest_names_the_nearest(word, near):
    choices = ["aviary", "cub200", "cars196", "sop", "inshop", "inshop-gallery"]
    assert errors.suggest(word, choices) == f" Did you mean {near!r}?"
    assert errors.suggest(word, iter(choices)) == f" Did you mean {near!r}?"


@pytest.mark.parametrize("word", ["zebra", "", None, 7])
def test_suggest_is_silent_where_nothing_is_near(word):
    assert errors.suggest(word, ["aviary", "cub200"]) == ""
    assert errors.suggest(word, []) == ""


def test_suggest_takes_numbers_too():
    assert errors.suggest(224, [196, 2240]) == " Did you mean '2240'?"


# --- import sobook -------------------------------------------------------------------------------


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
    done = run_with(tmp_path, "-c", "import sobook", torchvision=NMS)  # the real torch
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
@pytest.mark.parametrize("arguments", [("-c", "import sobook.losses"), ("-m", "sobook", "--help")])
def test_other_ways_for_the_pair_to_fail(tmp_path, arguments, packages, reason):
    done = run_with(tmp_path, *arguments, **packages)
    assert done.returncode == 1
    *_, last = done.stderr.strip().splitlines()
    assert "do not work together" in last
    assert f"{reason}): reinstall them as a pair with `pip install" in last
    assert "another" not in done.stderr


def test_other_errors_are_left_alone(tmp_path):
    done = run_with(tmp_path, "-c", "import sobook", torch="1 / 0")
    assert "ZeroDivisionError" in done.stderr
    assert "reinstall" not in done.stderr


def test_a_missing_torchvision_is_called_missing(tmp_path):
    script = """
import sys
from importlib import metadata

found = metadata.version

def version(name):
    if name == "torchvision":
        raise metadata.PackageNotFoundError(name)
    return found(name)

metadata.version = version
sys.modules["torchvision"] = None  # importing it now fails
import sobook
"""
    done = run_with(tmp_path, "-c", script, torch="")
    assert f"torch {metadata.version('torch')} and torchvision (missing)" in done.stderr
    assert "pip install --force-reinstall torch torchvision" in done.stderr


def test_a_pair_that_fits_is_imported_in_silence(tmp_path):
    script = "import sobook; print(sobook.__version__)"
    done = run_with(tmp_path, "-c", script, torch="", torchvision="")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.strip().count(".") == 2
