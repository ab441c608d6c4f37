"""Copies of checkpoints on a Drive: one that is killed, truncates, has no locks, or goes away."""

import errno
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from sobook import files
from sobook.errors import RunError
from sobook.training import estimate, loop as training, run as run_folder
from sobook.training.config import run_key
from sobook.training.loop import fit
from sobook.training.mirror import Mirror
from sobook.training.run import Run
from tests.training.reading import assert_same_bits, assert_same_proxies, losses, resumes_at


@pytest.fixture(scope="module")
def never(settings, tmp_path_factory):
    """A run that was never interrupted, and never copied."""
    folder = tmp_path_factory.mktemp("never") / "run"
    return fit(settings.replace(run_dir=folder), progress=False)


class Died(BaseException):
    """The machine is gone."""


@pytest.fixture(scope="module")
def left(settings, tmp_path_factory):
    """The Drive of a machine that was lost in the third epoch, with all but that."""
    base, finish = tmp_path_factory.mktemp("left"), training.FineTuning._finish_epoch
    (base / "drive").mkdir()

    def dying(self, epoch, *rest):
        if epoch == 3:
            raise Died
        return finish(self, epoch, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
        patch.setenv("SOBOOK_MIRROR", str(base / "drive"))
        patch.setattr(training.FineTuning, "_finish_epoch", dying)
        fit(settings.replace(run_dir=base / "run"), progress=False)
    return base / "drive"


@pytest.fixture
def drive(tmp_path, monkeypatch) -> Path:
    (tmp_path / "drive").mkdir()
    monkeypatch.setenv("SOBOOK_MIRROR", str(tmp_path / "drive"))
    return tmp_path / "drive"


@pytest.fixture
def found(left, drive) -> Path:
    """A Drive that is mounted on the next machine."""
    shutil.copytree(left, drive, dirs_exist_ok=True)
    return drive


def copies(drive: Path) -> list[Path]:
    """The copies of the only run there, the newest last."""
    return sorted(drive.glob("*/*.zip"))


def restore(config) -> None:
    """What `fit` does first on a machine."""
    with run_folder.held(config.folder()):
        Mirror(Run(config.folder(), config)).restore()


def test_a_fresh_machine_ends_with_the_same_bits(long_config, never, found, capsys):
    assert [file.name[:12] for file in copies(found)] == ["00002-000000", "00003-000000"]
    run = fit(long_config, progress=False)
    assert "restored from" in capsys.readouterr().out
    assert_same_bits(run.path, never.path)
    assert_same_proxies(run.path, never.path)
    assert losses(run.path) == losses(never.path)
    assert run.retrieval == never.retrieval
    assert [file.name[:8] for file in copies(found)] == ["00004-00", "finished"]


def test_a_finished_run_comes_back_byte_for_byte_without_training(
    long_config, never, drive, monkeypatch
):
    Mirror(never).keep()
    monkeypatch.setattr(training.FineTuning, "train", None)
    again = fit(long_config, progress=False)
    for name in run_folder.FILES:
        if name not in ("config.json", "resume.safetensors"):  # the one says where the run lies
            assert (again.path / name).read_bytes() == (never.path / name).read_bytes()
    assert not (again.path / "resume.safetensors").exists()


def test_a_copy_is_no_part_of_what_a_run_is(long_config, drive, monkeypatch):
    run = run_folder.create(long_config)
    written = (run.path / "config.json").read_text(encoding="utf-8")
    assert json.loads(written)["run_key"] == run_key(long_config)
    monkeypatch.delenv("SOBOOK_MIRROR")
    assert run_folder.create(long_config).path == run.path
    assert (run.path / "config.json").read_text(encoding="utf-8") == written


def test_a_copy_is_a_run_folder_once_unpacked(never, drive, tmp_path):
    Mirror(never).keep()
    shutil.unpack_archive(copies(drive)[0], tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert run.finished and run.retrieval == never.retrieval


def test_an_older_folder_is_brought_up_to_date_and_a_newer_one_is_kept(long_config, found):
    newest = copies(found)[-1]
    hidden = newest.rename(newest.with_suffix(".hidden"))
    restore(long_config)
    assert resumes_at(long_config) == (2, 0)
    hidden.rename(newest)
    restore(long_config)
    assert resumes_at(long_config) == (3, 0)
    newest.unlink()
    restore(long_config)
    assert resumes_at(long_config) == (3, 0)


def test_a_killed_copy_is_never_taken(long_config, never, found):
    """SIGKILL while the newest checkpoint is half on the Drive."""
    copy = shutil.copyfileobj

    def half(source, target, *rest):
        if rest:  # within the zip file
            return copy(source, target, *rest)
        target.write(source.read(5000))
        target.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        shutil.copyfileobj = half
        Mirror(never).keep()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (partial,) = found.glob("*/.*")
    assert partial.stat().st_size == 5000
    restore(long_config)
    assert resumes_at(long_config) == (3, 0)
    assert not partial.exists()


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    else:
        content = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "empty", "another byte"])
def test_a_damaged_copy_gives_way_to_the_one_before(long_config, found, how):
    newest = copies(found)[-1]
    damage(newest, how)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged.*before it is used"):
        restore(long_config)
    assert resumes_at(long_config) == (2, 0)


def test_where_no_copy_is_whole_nothing_is_taken(long_config, found):
    for file in copies(found):
        damage(file, "truncated")
    before = {file: file.read_bytes() for file in copies(found)}
    with pytest.raises(RunError, match=r"zip is damaged.*no copy.*whole.*delete.*train anew"):
        fit(long_config, progress=False)
    assert {file: file.read_bytes() for file in copies(found)} == before
    assert not (long_config.folder() / "config.json").exists()


def test_a_copy_that_cannot_be_read_is_not_called_damaged(long_config, found, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfileobj", broken)
    with pytest.raises(RunError, match=r"zip could not be read \(Input/output error\)"):
        restore(long_config)


def test_a_drive_that_truncates_is_noticed_before_a_copy_has_its_name(never, drive, monkeypatch):
    copy = shutil.copyfileobj

    def truncating(source, target, *rest):
        copy(source, target, *rest)
        if not rest:
            target.truncate(target.tell() // 2)

    monkeypatch.setattr(shutil, "copyfileobj", truncating)
    mirror = Mirror(never)
    with pytest.warns(UserWarning, match="could not be copied.*not what was written") as told:
        mirror.keep()
        mirror.keep()
    assert len(told) == 1
    assert not list(drive.glob("*/*"))


def test_a_drive_without_locks_and_fsync(long_config, found, monkeypatch, recwarn):
    """Only the run folder is locked, which is local."""
    flock, fsync = fcntl.flock, os.fsync

    def on_drive(descriptor):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(found)

    def lock(descriptor, operation):
        assert not on_drive(descriptor)
        return flock(descriptor, operation)

    def settle(descriptor):
        if on_drive(descriptor):
            raise OSError(errno.ENOSYS, "Function not implemented")
        return fsync(descriptor)

    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(os, "fsync", settle)
    restore(long_config)
    before = copies(found)
    with run_folder.held(long_config.folder()):
        run = run_folder.create(long_config)
        run_folder.append_metrics(run.path, {"kind": "note"})
        Mirror(run).keep()
    assert len(copies(found)) == 2 and copies(found) != before
    assert not list(recwarn)


def test_a_drive_that_disappears_is_told_once_and_training_goes_on(
    long_config, never, drive, monkeypatch
):
    """Its folder is not made anew: on Colab that would hide the Drive from its own mount point."""
    write, saved = run_folder.write_resume, []

    def counted(*arguments):
        write(*arguments)
        saved.append(arguments)
        if len(saved) == 2:
            shutil.rmtree(drive)

    monkeypatch.setattr(run_folder, "write_resume", counted)
    with pytest.warns(UserWarning, match="Training continues") as told:
        run = fit(long_config, progress=False)
    assert len([one for one in told if "could not be copied" in str(one.message)]) == 1
    assert_same_bits(run.path, never.path)
    assert not drive.exists()
    drive.mkdir()  # mounted again: the same cell copies what is missing
    monkeypatch.setattr(training, "FineTuning", None)
    fit(long_config, progress=False)
    assert [file.name[:9] for file in copies(drive)] == ["finished-"]


def test_a_drive_that_is_not_mounted_is_one_sentence(long_config, drive):
    drive.rmdir()
    for use in (estimate.dry_run, fit):
        with pytest.raises(RunError, match="SOBOOK_MIRROR.*drive is not there: mount"):
            use(long_config)
    assert not long_config.folder().exists() and not drive.exists()


def test_old_copies_leave_no_content_in_the_trash_of_a_drive(never, drive, monkeypatch):
    folder, sizes = drive / never.config.replace(run_dir=None).folder().name, []
    folder.mkdir()
    for number in range(3):
        (folder / f"0000{number}-000000-0.zip").write_bytes(b"content")
    remove = files.remove

    def counted(path):
        if path.suffix == ".zip" and path.exists():
            sizes.append((path.name[:5], path.stat().st_size))
        remove(path)

    monkeypatch.setattr(files, "remove", counted)
    Mirror(never).keep()
    assert sizes == [("00000", 0), ("00001", 0)]
    assert [file.name[:8] for file in copies(drive)] == ["00002-00", "finished"]


def test_only_the_main_process_copies(never, drive, monkeypatch):
    for name, value in {"FORK_LAUNCHED": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    Mirror(never).keep()
    assert not copies(drive)
