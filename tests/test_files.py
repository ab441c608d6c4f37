"""The foundation: packaged files, the data folder, atomic writes, locks, imports on first use."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sobook import files
from sobook.encoder import MICRO
from sobook.errors import SobookError

ROOT = Path(__file__).resolve().parent.parent
READY = 'print("ready", flush=True); time.sleep(60)'
WRITE = f"""import time; from sobook import files
with files.replacing({{file!r}}) as partial: partial.write_text("half"); {READY}"""
LOCK = f"""import time, pathlib; from sobook import files
with files.lock(pathlib.Path({{file!r}})): {READY}"""


def python(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], text=True, **options)


def test_an_installed_package_carries_its_files(tmp_path):
    """As in a wheel: no checkout around the package, and ``_data`` in it."""
    package = tmp_path / "sobook"
    (package / "_data").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "files.py"):
        shutil.copy(ROOT / "sobook" / name, package)
    code = "from sobook import files; print(files.shipped('recipes.toml'), files.data_root())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SOBOOK_DATA": ""}
    with python(code, env=environment, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        printed = process.stdout.read().split()
    assert printed == [str(package / "_data/recipes.toml"), str(tmp_path / "data")]
    assert list(tmp_path.iterdir()) == [package]  # asking makes no folder


def test_a_wheel_carries_what_is_read_at_run_time():
    packaged = files.read_toml(ROOT / "pyproject.toml")["tool"]["hatch"]["build"]["targets"]
    carried = packaged["wheel"]["force-include"]
    assert all(target == f"sobook/_{source}" for source, target in carried.items())
    assert all((ROOT / source).exists() for source in carried)
    needed = {"benchmarks.toml", "recipes.toml", f"{MICRO}.safetensors", "quick_runs"}
    assert {f"data/{name}" for name in needed | {"studies", "results"}} <= set(carried)


def test_data_root_is_argument_then_setting_then_checkout(monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", "/from/setting")
    assert files.data_root("given") == Path("given")
    assert files.data_root() == Path("/from/setting")
    monkeypatch.setenv("SOBOOK_DATA", "")
    assert files.data_root() == ROOT / "data"
    monkeypatch.setenv("HOME", "/nowhere/reader")
    assert files.data_root("~/birds") == Path("/nowhere/reader/birds")


@pytest.mark.parametrize("broken", [(os, "replace"), (os, "fsync"), (Path, "touch")])
def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, broken):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_json(tmp_path / "a.json", {"recall": 0.5})
    monkeypatch.setattr(*broken, full)
    with pytest.raises(SobookError, match="a.json could not be written .No space left"):
        files.write_json(tmp_path / "a.json", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n  "recall": 0.5\n}\n'


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    files.write_text(file, "before")
    with python(WRITE.format(file=str(file)), cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
    assert file.read_text() == "before"
    files.write_text(file, "after")
    assert file.read_text() == "after"


def test_the_umask_decides_who_may_read(tmp_path):
    """Whatever the library that wrote the file wants: safetensors wants its owner alone."""
    before = os.umask(0o002)
    try:
        with files.replacing(tmp_path / "folder") as partial:
            partial.mkdir()
            os.close(os.open(partial / "file", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "folder/file").stat().st_mode & 0o777 == 0o664


def test_links_and_names(tmp_path):
    (tmp_path / "link.txt").symlink_to(tmp_path / "file.txt")
    files.write_text(tmp_path / "link.txt", "through")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "file.txt").read_text() == "through"
    files.write_text(tmp_path / f"{'a' * 251}.txt", "as long as a file system allows")
    name = os.fsdecode(b"V\xf6gel")  # not UTF-8
    files.write_json(tmp_path / "a.json", name)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == name


def test_a_lock_between_two_processes(tmp_path):
    """The second waits, says so in a line, and goes on when the first is killed."""
    file = tmp_path / "folder" / "a.lock"
    code, pipes = LOCK.format(file=str(file)), {"stdout": subprocess.PIPE, "cwd": ROOT}
    with python(code, **pipes) as first:
        assert first.stdout.readline() == "ready\n"
        with python(code, **pipes, stderr=subprocess.PIPE) as second:
            assert "a.lock" in second.stderr.readline()
            assert second.poll() is None
            first.kill()
            assert second.stdout.readline() == "ready\n"
            second.kill()
    for _ in range(2):  # and is free again after the block
        with files.lock(file):
            pass
