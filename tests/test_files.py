"""The foundation: packaged files, the data folder, whole writes, lazy imports."""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
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
    asked = {
        "benchmarks.toml",
        "recipes.toml",
        f"{MICRO}.safetensors",
        "quick_runs",
        "studies",
        "results",
    }
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


@pytest.mark.parametrize(
    "number, remedy",
    [
        (errno.ENOSPC, "make room;"),
        (errno.EDQUOT, "make room in your quota"),
        (errno.EROFS, "choose a folder with write permission .SOBOOK_DATA"),
        (errno.EACCES, "choose a folder with write permission"),
        (errno.EIO, "look after the disk"),
        (errno.ENAMETOOLONG, "choose another place"),
    ],
)
def test_each_way_not_to_write_has_its_remedy(tmp_path, monkeypatch, number, remedy):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.json").write_text("kept")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(errors.SobookError, match=f"a.json could not be written .*{remedy}"):
        files.write_json(tmp_path / "a.json", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "kept"


def test_a_folder_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    with pytest.raises(errors.SobookError, match="Read-only"), files.replacing(tmp_path / "x"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path, mask, mode):
    """Whatever the library that wrote the file wants: safetensors wants its owner alone."""
    before = os.umask(mask)
    try:
        with files.replacing(tmp_path / "one.npz") as partial:
            os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
        with files.replacing(tmp_path / "folder") as partial:
            partial.mkdir()
            os.close(os.open(partial / "two", os.O_CREAT | os.O_WRONLY, 0o600))
        with files.lock(tmp_path / "a.lock"):
            pass
    finally:
        os.umask(before)
    for name in ("one.npz", "folder/two", "a.lock"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_file_system_without_modes_and_fsync(tmp_path, monkeypatch):
    """As memory cards and some network drives are."""

    def refuse(*_, **__):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    files.write_text(tmp_path / "a.txt", "written")
    assert (tmp_path / "a.txt").read_text() == "written"


def test_a_disk_that_says_only_at_the_end_that_it_is_full(tmp_path, monkeypatch):
    """As network file systems do, which keep what is written until then."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_text(tmp_path / "a.txt", "before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.SobookError, match="No space left"):
        files.write_text(tmp_path / "a.txt", "after")
    assert (tmp_path / "a.txt").read_text() == "before"


def test_a_link_and_a_device_stay_what_they_are(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "disk" / "file.txt")
    files.write_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "disk" / "file.txt").read_text() == "through"
    os.mkfifo(tmp_path / "pipe")
    with files.replacing(tmp_path / "pipe") as partial:
        assert partial == tmp_path / "pipe"
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_as_long_as_the_file_system_allows(tmp_path):
    for name in ("a" * 251, "ä" * 125):
        files.write_text(tmp_path / f"{name}.txt", "written")
        assert (tmp_path / f"{name}.txt").read_text() == "written"


def test_bytes_of_a_name_that_are_not_utf_8_survive_json(tmp_path):
    name = os.fsdecode(b"V\xf6gel")
    files.write_json(tmp_path / "a.json", {"root": name, "word": "Vögel"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert '"Vögel"' in text and json.loads(text)["root"] == name


def test_what_a_killed_process_left_is_swept(tmp_path):
    for name in (".a.7-ab.partial.npz", ".a.8-cd.partial", "a.npz", ".b.7-ab.partial.npz"):
        (tmp_path / name).write_text("")
    files.sweep(tmp_path / "a.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", ".b.7-ab.partial.npz"}


def test_text_is_utf_8_whatever_the_locale():
    """Every text file that the package opens names its encoding."""
    unnamed = re.compile(r"\.read_text\(\)|(?<![\w.])open\([^)]*, \"[rwa]\"\)")
    for source in (ROOT / "sobook").rglob("*.py"):
        assert not unnamed.findall(source.read_text(encoding="utf-8")), source


# --- Locks ---------------------------------------------------------------------------------------


UNSUPPORTED = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO]


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_where_flock_is_missing_a_warning_says_so(tmp_path, monkeypatch, number):
    """Lustre: https://github.com/tox-dev/filelock/issues/67; NFS: ENOLCK."""

    def missing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", missing)
    sentence = r"a\.lock cannot be locked .*only one process at a time"
    with pytest.warns(UserWarning, match=sentence), files.lock(tmp_path / "new" / "a.lock"):
        pass


def test_whoever_waits_is_told_for_whom_and_a_lost_lock_can_be_deleted(tmp_path, capfd):
    """As after a machine that held a lock on a network drive has vanished."""
    file = tmp_path / "a.lock"
    held, entered = files.lock(file), threading.Event()
    held.__enter__()

    def wait():
        with files.lock(file, waiting="Waiting."):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not entered.wait(0.3)
    file.unlink()
    assert entered.wait(10)
    waiting.join()
    held.__exit__(None, None, None)
    assert capfd.readouterr().err == (
        f"Waiting. process {os.getpid()} on {socket.gethostname()} holds {file}; if that process "
        "is gone, delete the file.\n"
    )


def test_a_lock_of_another_user_who_shares_the_folder(tmp_path, monkeypatch):
    file, original = tmp_path / "a.lock", os.open
    file.write_text("process 1 on elsewhere\n")

    def readable_alone(path, flags, *mode):
        if Path(path) == file and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, flags, *mode)

    monkeypatch.setattr(os, "open", readable_alone)
    with files.lock(file), files.try_lock(file) as free:
        assert not free
    with files.try_lock(file) as free:
        assert free


def test_a_lock_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    sentence = r"a\.lock could not be written .Read-only"
    with pytest.raises(errors.SobookError, match=sentence), files.lock(tmp_path / "a.lock"):
        pytest.fail("the block ran")


# --- Processes -----------------------------------------------------------------------------------


LEFT = {
    "a size": {"WORLD_SIZE": "64"},
    "a rank": {"RANK": "3", "LOCAL_RANK": "3"},
    "SLURM": {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
    "OpenMPI": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
    "MPICH": {"PMI_SIZE": "4", "PMI_RANK": "3"},
    "a job script": {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "4"},
    "all of env://": {
        "MASTER_ADDR": "x", "MASTER_PORT": "1", "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"
    },
}  # fmt: skip


@pytest.mark.parametrize("left", LEFT)
def test_what_a_scheduler_left_makes_no_team(left, monkeypatch):
    for name, value in LEFT[left].items():
        monkeypatch.setenv(name, value)
    assert files.launched() == (0, 1)


def test_a_launcher_makes_a_team(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert files.launched() == (1, 2)


def test_caches_of_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    """numba cannot compile UMAP there: https://github.com/lmcinnes/umap/issues/487."""
    for name in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    files.prepare_libraries()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    files.prepare_libraries()
    found = {Path(os.environ[name]).parent for name in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR")}
    assert len(found) == 1 and found.pop().is_dir()


def test_two_openmps_on_macos(monkeypatch):
    """https://github.com/faiss-wheels/faiss-wheels/issues/73"""
    monkeypatch.delenv("KMP_DUPLICATE_LIB_OK", raising=False)
    files.prepare_libraries()
    assert "KMP_DUPLICATE_LIB_OK" not in os.environ or sys.platform == "darwin"
    monkeypatch.setattr(sys, "platform", "darwin")
    files.prepare_libraries()
    assert os.environ["KMP_DUPLICATE_LIB_OK"] == "TRUE"


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
