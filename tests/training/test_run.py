"""The run folder: who may write into it, what opens it again, and a disk that is full."""

import errno
import json
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sobook.errors import RunError, SobookError
from sobook.training import config as configs, loop as training, run as run_folder
from sobook.training.config import TrainConfig
from sobook.training.loop import fit
from sobook.training.run import Run
from tests import processes
from tests.training.reading import assert_same_bits, losses, resumes_at


@pytest.fixture(scope="module")
def once(settings, tmp_path_factory):
    """A finished run, for tests that copy it."""
    folder = tmp_path_factory.mktemp("once") / "run"
    return fit(settings.replace(epochs=1, run_dir=folder), progress=False).path


@pytest.fixture
def copied(once, tmp_path):
    return Path(shutil.copytree(once, tmp_path / "run"))


class TestRunFolder:
    def test_other_settings_are_refused_with_the_differences(self, finished, config):
        with pytest.raises(RunError, match=r"other settings \(so_weight: 10.0 → 3.0\)"):
            fit(config.replace(so_weight=3.0), progress=False)

    def test_not_a_run(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(RunError, match="not a run folder.*no config.json"):
                Run.load(path)

    def test_foreign_folder_is_not_written_into(self, config, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("precious")
        with pytest.raises(RunError, match="not empty and not a run folder"):
            fit(config, progress=False)

    def test_settings_that_cannot_work_leave_no_folder(self, config):
        with pytest.raises(ValueError, match="batch_size is 500"):
            fit(config.replace(batch_size=500), progress=False)
        assert not config.folder().exists()

    def test_unfinished_run_says_so(self, config):
        run = run_folder.create(config)
        with pytest.raises(RunError, match="no retrieval.json: the run is not finished"):
            run.retrieval  # noqa: B018

    def test_damaged_json(self, finished):
        (finished.path / "config.json").write_text("{")
        with pytest.raises(RunError, match="not valid JSON"):
            Run.load(finished.path)

    def test_a_run_on_pictures_that_changed_is_not_reopened(self, tmp_path):
        (tmp_path / "mine").mkdir()
        config = TrainConfig(dataset="folder", root=tmp_path / "mine", run_dir=tmp_path / "run")
        run_folder.create(config)
        (tmp_path / "mine" / "new.png").write_bytes(b"picture")
        with pytest.raises(RunError, match="pictures that have changed since"):
            run_folder.find(config)

    def test_pictures_that_moved_are_the_same_run(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "1.png").write_bytes(b"picture")
        config = TrainConfig(dataset="folder", root=tmp_path / "mine", run_dir=tmp_path / "run")
        run_folder.create(config)
        (tmp_path / "mine").rename(tmp_path / "moved")
        assert run_folder.find(config.replace(root=tmp_path / "moved"))

    def test_a_run_of_another_version_is_not_reopened(self, finished, config, monkeypatch):
        monkeypatch.setattr(configs, "SCHEMA", configs.SCHEMA + 1)
        with pytest.raises(RunError, match="another version of sobook"):
            fit(config, progress=False)

    def test_a_run_of_a_newer_version_is_one_sentence(self, finished, config):
        file = finished.path / "config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        changed = json.dumps({**values, "mixup": 0.2})
        file.write_text(changed, encoding="utf-8")
        for use in (lambda: Run.load(finished.path), lambda: fit(config, progress=False)):
            with pytest.raises(RunError, match="another version of sobook.*'mixup'.*state.json"):
                use()
        assert file.read_text(encoding="utf-8") == changed  # nothing is overwritten

    @pytest.mark.parametrize(
        "name, content",
        [
            ("config.json", b"[]"),
            ("config.json", b"\xff\xfe"),
            ("state.json", b""),
            ("retrieval.json", b"null"),
            ("metrics.jsonl", b"{]\n"),
            ("proxies.safetensors", b"half"),
            ("checkpoint.safetensors", b""),
        ],
    )
    def test_a_damaged_file_is_one_sentence(self, copied, name, content):
        (copied / name).write_bytes(content)
        with pytest.raises(RunError, match=f"{name} is not valid .*the run folder is damaged"):
            run = Run.load(copied)
            run.state, run.retrieval, run.metrics  # noqa: B018
            run.proxies()
            run.encoder()

    def test_an_encoder_of_another_version_is_one_sentence(self, copied):
        state = json.loads((copied / "state.json").read_text(encoding="utf-8"))
        state["encoder"]["pooling"] = "gem"
        (copied / "state.json").write_text(json.dumps(state), encoding="utf-8")
        with pytest.raises(RunError, match="does not fit this version of sobook or timm.*pooling"):
            Run.load(copied).encoder()

    def test_a_run_that_was_moved_renamed_or_linked(self, copied, tmp_path):
        expected = Run.load(copied).proxies()
        (tmp_path / "far").mkdir()
        moved = copied.rename(tmp_path / "far" / "Läufe 1")
        (tmp_path / "link").symlink_to(moved)
        for path in (moved, tmp_path / "link"):
            run = Run.load(path)
            assert torch.equal(run.proxies(), expected)
            opened = fit(run.config.replace(run_dir=path), progress=False)
            assert opened.path == path and opened.finished

    def test_data_are_found_from_any_folder(self, config, tmp_path, monkeypatch):
        """Trained with a relative root; then moved, and resumed: config.json says where to."""
        config = config.replace(root="birds")
        monkeypatch.chdir(tmp_path)
        run_folder.create(config)
        monkeypatch.chdir("/")
        assert Run.load(config.run_dir).config.root == str(tmp_path / "birds")
        run_folder.create(config.replace(root="/mnt/birds"))
        assert Run.load(config.run_dir).config.root == "/mnt/birds"

    def test_what_killed_writers_left_is_cleared_away(self, config):
        run = run_folder.create(config)
        for name in (".resume.7-ab.partial.safetensors", ".tmpAb12Cd", ".DS_Store"):
            (run.path / name).write_text("half")
        with run_folder.held(run.path):
            kept = {path.name for path in run.path.iterdir()}
        assert kept == {"config.json", ".lock", ".DS_Store"}

    def test_a_clock_that_jumps_changes_nothing(self, config, tmp_path, monkeypatch):
        """Machines without a battery start in 1970; a clock can also go backwards."""
        times = iter(range(10**6, 0, -1000))
        monkeypatch.setattr(time, "time", lambda: float(next(times)))
        monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
        odd = fit(config, progress=False)
        monkeypatch.undo()
        even = fit(config.replace(run_dir=tmp_path / "even"), progress=False)
        assert_same_bits(odd.path, even.path)

    def test_moved_data_train_nothing_anew(self, finished, config, monkeypatch):
        monkeypatch.setattr(training, "FineTuning", None)
        assert fit(config.replace(root="/moved"), progress=False).finished

    def test_half_a_line_of_metrics_is_not_read(self, long_config):
        run = fit(long_config, progress=False)
        before = len(run.metrics)
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "step", "epo')
        assert len(run.metrics) == before


def test_two_processes_at_one_run_train_it_once(long_config):
    """As when two notebooks that share a run are started together."""
    both = [processes.start(long_config) for _ in range(2)]
    for process, queue in both:
        process.join(120)
        assert process.exitcode == 0 and queue.empty()
    steps = [step for step, _ in losses(long_config.run_dir)]
    assert steps == list(range(9))  # 3 epochs of 3 steps, none twice
    assert Run.load(long_config.run_dir).finished


def test_a_folder_left_by_a_kill_while_it_was_made_is_no_obstacle(long_config):
    long_config.folder().mkdir()
    (long_config.folder() / ".config.json.123.partial").write_text("{")
    assert run_folder.create(long_config).path == long_config.folder()


class TestDisk:
    def test_full_while_saving(self, long_config, tmp_path, monkeypatch):
        """The disk is full from the second epoch on: the first one's checkpoint survives."""
        original, calls = run_folder.save_file, []

        def full(tensors, file, metadata):
            calls.append(file)
            if len(calls) > 8:
                Path(file).write_bytes(b"the first half")
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(tensors, file, metadata)

        monkeypatch.setattr(run_folder, "save_file", full)
        with pytest.raises(SobookError, match="No space left on device.*make room.*is untouched"):
            fit(long_config, progress=False)
        assert not list(long_config.folder().glob("*partial*"))
        assert resumes_at(long_config) == (2, 0)
        monkeypatch.undo()
        never = fit(long_config.replace(run_dir=tmp_path / "never"), progress=False)
        assert_same_bits(fit(long_config, progress=False).path, never.path)

    def test_a_file_that_the_system_will_not_let_grow(self, tmp_path):
        """The real thing, from below safetensors: a limit on the size of files."""
        file = tmp_path / "weights.safetensors"
        run_folder.write_tensors(file, {"w": torch.ones(10)})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(SobookError, match="could not be written.*untouched"):
                run_folder.write_tensors(file, {"w": torch.ones(10**6)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        assert torch.equal(load_file(file)["w"], torch.ones(10))

    def test_read_only_folder(self, long_config, monkeypatch):
        def read_only(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", read_only)
        with pytest.raises(SobookError, match="Read-only file system.*write permission"):
            run_folder.create(long_config)
