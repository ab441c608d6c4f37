"""The run folder: who may write into it, what opens it again, and its copy on a drive."""

import builtins
import io
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from sobook.data import image_sets
from sobook.encoder import Encoder
from sobook.errors import RunError
from sobook.training import config as configs, run as run_folder
from sobook.training.config import TrainConfig
from sobook.training.loop import fit
from sobook.training.run import Run
from tests import processes
from tests.training.reading import assert_same_run, losses, resumes_at


class TestFolder:
    def test_files(self, finished):
        names = {f.relative_to(finished.path).as_posix() for f in finished.path.rglob("*")}
        proxies = {f"proxies/epoch_000{epoch}.safetensors" for epoch in range(4)}
        assert names - {".lock"} == proxies | {
            *("config.json", "metrics.jsonl", "proxies", "checkpoint.safetensors"),
            *("state.json", "retrieval.json"),
        }
        assert finished.finished and Run.load(finished.path).config == finished.config

    def test_proxies_of_every_epoch(self, finished):
        start, last = finished.proxies(0), finished.proxies(3)
        assert start.shape == (4, 16) and start.dtype == torch.float32
        assert not torch.allclose(start, last)
        assert torch.equal(finished.proxies(), last) and torch.equal(finished.proxies(-1), last)
        with pytest.raises(RunError, match="0..3"):
            finished.proxies(4)

    def test_state_names_the_classes(self, config):
        config = config.replace(selection="validation", validation_fraction=0.5, batch_size=4)
        run = fit(config, progress=False)
        state = run.state
        parts = [state[f"{part}_classes"] for part in ("validation", "test")]
        assert [len(names) for names in (state["class_names"], *parts)] == [2, 2, 4]
        assert len({*state["class_names"], *parts[0], *parts[1]}) == 8
        assert {"sobook", "torch", "python"} <= state["versions"].keys()

    def test_finished_is_opened_not_repeated(self, finished, monkeypatch):
        monkeypatch.setattr("sobook.training.loop.prepare", None)
        for root in (finished.config.root, "/moved"):
            again = fit(finished.config.replace(root=root), progress=False)
            assert again.retrieval == finished.retrieval

    def test_other_settings_and_versions_are_refused(self, finished, monkeypatch):
        with pytest.raises(RunError, match=r"so_weight: 10.0 → 3.0"):
            fit(finished.config.replace(so_weight=3.0), progress=False)
        monkeypatch.setattr(configs, "SCHEMA", configs.SCHEMA + 1)
        with pytest.raises(RunError, match="another version"):
            fit(finished.config, progress=False)

    def test_not_a_run_and_not_finished(self, tmp_path, config):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(RunError, match="config.json"):
                Run.load(path)
        config.folder().mkdir()
        (config.folder() / "thesis.txt").write_text("precious")
        with pytest.raises(RunError, match="not empty"):
            fit(config, progress=False)
        (config.folder() / "thesis.txt").unlink()
        with Run.open(config).locked():
            pass
        with pytest.raises(RunError, match="not finished"):
            Run.load(config.folder()).retrieval  # noqa: B018

    def test_moved_and_linked(self, finished, tmp_path):
        moved = Path(shutil.copytree(finished.path, tmp_path / "Läufe 1"))
        (tmp_path / "link").symlink_to(moved)
        with open(moved / "metrics.jsonl", "a") as file:
            file.write('{"kind": "step", "epo')  # half a line is not read
        for path in (moved, tmp_path / "link"):
            opened = fit(finished.config.replace(run_dir=path), progress=False)
            assert opened.path == path and torch.equal(opened.proxies(), finished.proxies())
            assert opened.metrics == finished.metrics

    def test_data_are_found_from_any_folder(self, config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with Run.open(config.replace(root="birds")).locked():
            pass
        monkeypatch.chdir("/")
        assert Run.load(config.run_dir).config.root == str(tmp_path / "birds")


@pytest.fixture
def pictures(tiny_aviary, tiny_options, tmp_path):
    """A folder of pictures with one subfolder per class."""
    for part in ("train", "test"):
        birds = image_sets.load("aviary", part, tiny_aviary, **tiny_options)
        for source in birds.paths:
            target = tmp_path / "mine" / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return tmp_path / "mine"


@pytest.fixture
def own(pictures, tmp_path) -> TrainConfig:
    return TrainConfig(
        dataset="folder",
        root=pictures,
        dim=16,
        epochs=1,
        selection="last",
        run_dir=tmp_path / "own",
    )


class TestMadeOf:
    """A run knows its pictures and weights, and who brings others is told."""

    def test_pictures_of_equal_names_and_sizes(self, own, pictures, tmp_path):
        """As of two cameras: other content, another run."""
        for file in pictures.glob("*/*.png"):
            Image.open(file).save(file.with_suffix(".bmp"))
            file.unlink()
        run = fit(own, progress=False)
        shutil.copytree(pictures, tmp_path / "cam2")
        assert fit(own.replace(root=tmp_path / "cam2"), progress=False).retrieval == run.retrieval
        for file in (tmp_path / "cam2").glob("*/*.bmp"):
            ImageOps.invert(Image.open(file)).save(file)
        with pytest.raises(RunError, match="changed"):
            fit(own.replace(root=tmp_path / "cam2"), progress=False)
        named = [own.replace(root=root, run_dir=None) for root in (pictures, tmp_path / "cam2")]
        assert named[0].folder() != named[1].folder()
        assert fit(own, progress=False).retrieval == run.retrieval

    def test_a_class_folder_that_is_added_moves_no_class_into_the_test(self, own, pictures):
        run = fit(own, progress=False)
        assert len(run.sets["test"].class_names) == len(run.state["test_classes"])
        first = sorted(pictures.iterdir())[0]
        for name in ("0a", "0b"):
            shutil.copytree(first, pictures / name)
        with pytest.raises(RunError, match="pictures are not those"):
            Run.load(run.path).sets  # noqa: B018

    @pytest.mark.parametrize("mirrored", [False, True])
    def test_weights_of_the_same_path(self, own, tmp_path, monkeypatch, mirrored):
        file, drive = tmp_path / "weights.pth", tmp_path / "drive"
        state = Encoder.create("deit_micro_patch8_64", dim=None).backbone.state_dict()
        torch.save(state, file)
        own = own.replace(weights=file)
        if mirrored:
            drive.mkdir()
            monkeypatch.setenv("SOBOOK_MIRROR", str(drive))
        run = fit(own, progress=False)
        assert fit(own, progress=False).retrieval == run.retrieval
        if mirrored:
            shutil.rmtree(own.run_dir)  # and is restored
        torch.save({name: 2 * tensor for name, tensor in state.items()}, file)
        with pytest.raises(RunError, match="weights are not those"):
            fit(own, progress=False)

    def test_a_run_that_resumes(self, own, pictures, tmp_path, monkeypatch):
        birds = own.replace(dataset="cub200", root=None)
        parts = image_sets.load_splits("folder", pictures)
        monkeypatch.setattr(image_sets, "load_splits", lambda *_, **__: parts)
        stop = lambda epoch, _: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
        with pytest.raises(KeyboardInterrupt):
            fit(birds, progress=False, after_epoch=stop)
        file = next(pictures.glob("*/*.png"))
        ImageOps.invert(Image.open(file)).save(file)
        with pytest.raises(RunError, match="pictures are not those"):
            fit(birds, progress=False)


def test_every_file_is_opened_once(pictures, config, tmp_path, monkeypatch):
    """No file of the run is read back, and a folder is walked once."""
    config = config.replace(dataset="folder", root=pictures, options={})
    fit(config.replace(epochs=1, run_dir=tmp_path / "first"), progress=False)  # decodes
    read, walked, load_splits = Counter(), [], image_sets.load_splits
    original = builtins.open

    def counting(file, mode="r", *args, **kwargs):
        if isinstance(file, str | Path) and Path(file).is_relative_to(tmp_path) and "r" in mode:
            read[Path(file).name] += 1
        return original(file, mode, *args, **kwargs)

    def walking(*args, **kwargs):
        walked.append(args)
        return load_splits(*args, **kwargs)

    load_file = run_folder.load_file
    monkeypatch.setattr(builtins, "open", counting)
    monkeypatch.setattr(io, "open", counting)
    monkeypatch.setattr(image_sets, "load_splits", walking)
    monkeypatch.setattr(
        run_folder, "load_file", lambda file: read.update([file.name]) or load_file(file)
    )
    fit(config, progress=False)
    # Hidden files are those being written, which are brought to the disk.
    kept = {name for name in read if name[0] != "." and not name.endswith((".png", ".npz"))}
    ours = {name: read[name] for name in kept}
    assert ours == {"checkpoint.safetensors": 1, "state.json": 1}  # the epoch that was kept
    assert len(walked) == 1


def test_two_processes_at_one_run_train_it_once(config):
    """As when two notebooks that share a run are started together."""
    both = [processes.start(config) for _ in range(2)]
    for process, queue in both:
        process.join(120)
        assert process.exitcode == 0 and queue.empty()
    assert [step for step, _ in losses(config.run_dir)] == list(range(9))  # none twice


class TestMirror:
    @pytest.fixture
    def drive(self, tmp_path, monkeypatch) -> Path:
        (tmp_path / "drive").mkdir()
        monkeypatch.setenv("SOBOOK_MIRROR", str(tmp_path / "drive"))
        return tmp_path / "drive"

    @staticmethod
    def lose(config, moment: int) -> None:
        """The machine vanishes once so many epochs, of 4, are done."""

        def dying(epoch, _):
            if epoch == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False, after_epoch=dying)
        shutil.rmtree(config.folder())

    def test_another_machine_ends_with_the_same_bits(self, config, finished, drive, capsys):
        self.lose(config, 2)
        run = fit(config, progress=False)
        assert "restored from" in capsys.readouterr().out
        assert_same_run(run.path, finished.path)
        (copy,) = drive.iterdir()
        assert copy.name == config.replace(run_dir=None).folder().name
        assert Run.load(copy).retrieval == finished.retrieval
        shutil.rmtree(run.path)
        assert fit(config, progress=False).retrieval == finished.retrieval

    def test_a_copy_that_is_behind_is_left_alone(self, config, drive):
        self.lose(config, 1)
        ((copy,), old) = (list(drive.iterdir()), drive.parent / "old")
        shutil.copytree(copy, old)
        self.lose(config, 2)
        with Run.open(config).locked():
            assert resumes_at(config) == (3, 0)
        shutil.rmtree(copy)
        shutil.copytree(old, copy)
        with Run.open(config).locked():
            assert resumes_at(config) == (3, 0)

    def test_a_copy_killed_half_way_resumes(self, config, finished, drive, monkeypatch):
        self.lose(config, 1)

        copy = shutil.copy2

        def stopping(source, target):
            if source.name == "resume.safetensors":
                raise KeyboardInterrupt
            return copy(source, target)

        monkeypatch.setattr(shutil, "copy2", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
        monkeypatch.setattr(shutil, "copy2", copy)
        shutil.rmtree(config.folder())
        with Run.open(config).locked():
            assert resumes_at(config) == (2, 0)
        assert_same_run(fit(config, progress=False).path, finished.path)

    def test_a_drive_that_disappears_stops_nothing(self, config, finished, drive):
        with pytest.warns(UserWarning, match="continues"):
            run = fit(config, progress=False, after_epoch=lambda *_: shutil.rmtree(drive, True))
        assert_same_run(run.path, finished.path)
        assert not drive.exists()  # on Colab it would hide the Drive from its mount point
        drive.mkdir()
        fit(config, progress=False)  # the same cell again copies what is missing
        assert Run.load(*drive.iterdir()).finished

    def test_a_drive_that_is_not_mounted_is_one_sentence(self, config, drive):
        drive.rmdir()
        with pytest.raises(RunError, match="mount"):
            fit(config, progress=False)
