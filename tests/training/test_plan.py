"""What is known before a run: data against batches and Ks, disk, memory, compiler, folders."""

import dataclasses
import re
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
from PIL import Image

from sobook.data import pixels
from sobook.errors import SobookError, TrainingError
from sobook.training import estimate, plan, processes as distributed, tracker
from sobook.training.config import TrainConfig
from sobook.training.loop import evaluate_run, fit
from sobook.training.plan import make_encoder, make_plan

CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path, rng, monkeypatch):
    """Makes a folder of so many pictures per class, and the settings of a run there."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))

    def make(*counts, **changes) -> TrainConfig:
        for number, count in enumerate(counts):
            folder = tmp_path / "mine" / f"class_{number:02d}"
            folder.mkdir(parents=True)
            for i in range(count):
                array = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / f"{i}.png")
        settings = {"batch_size": 4, "epochs": 1, "dim": 8, "device": "cpu", **changes}
        return TrainConfig(
            dataset="folder", root=tmp_path / "mine", run_dir=tmp_path / "run", **settings
        )

    return make


def refuse(config, message):
    """Before training, and without a trace."""
    for start in (fit, estimate.dry_run):
        with pytest.raises(SobookError, match=message):
            start(config)
        assert not config.folder().exists()


class TestSmall:
    def test_two_pictures_in_each_of_eight_classes(self, pictures):
        """It trained to the end, and then failed: "K = 8 is larger than the gallery"."""
        config = pictures(*[2] * 8)
        run = fit(config, progress=False)
        assert list(run.retrieval["recall"]) == ["1", "2", "4"]
        assert run.retrieval["notes"] == [
            "no Recall@K for K = 8: a query can find fewer images",
        ]
        assert evaluate_run(config, run.encoder()).ks == (1, 2, 4)

    @pytest.mark.parametrize(
        ("counts", "changes", "message"),
        [
            (
                [2] * 8,
                {"batch_size": 5},
                "batch_size is 5, but there are only 4 training images.*, 2 classes.*smaller",
            ),
            ([2] * 8, {"batch_size": 10**9}, "batch_size is 1000000000, but there are only 4"),
            ([3, 3], {"selection": "last"}, "folder train has 1 class: training needs at least 2"),
            ([3, 3, 3], {"selection": "last"}, r"3 image\(s\) of 1 class.*with one class only"),
            ([3, 3], {}, "1 training class.*too few to hold out.*--selection last"),
            ([4, 4, 1, 1], {"selection": "last"}, r"folder test, 2 image.*no query has an image"),
            ([1] * 20, {}, "folder validation.*no query.*two images of one, or.*selection last"),
            (
                [4] * 4,
                {"images_per_class": 2, "selection": "last", "batch_size": 8},
                "batch_size is 8: with 2 images per class it must be .* at most 4",
            ),
        ],
    )
    def test_too_little_is_said_before_training(self, pictures, counts, changes, message):
        refuse(pictures(*counts, **changes), message)

    def test_without_a_folder_the_one_around_is_not_read(self, monkeypatch, tmp_path):
        (tmp_path / "a").write_text("")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SobookError, match="'folder' needs root"):
            fit(TrainConfig(dataset="folder"))


class TestMachine:
    """What the machine lacks is said before the first picture is decoded."""

    @pytest.fixture
    def config(self, pictures, monkeypatch):
        monkeypatch.setattr(pixels, "decode", None)
        return pictures(*[3] * 8)

    def test_weights_come_before_the_data(self, config):
        refuse(config.replace(weights="gone.pth", root="/nowhere"), "gone.pth")

    def test_device(self, config):
        refuse(config.replace(device="cuda:77"), "device is 'cuda:77'")
        refuse(config.replace(device="cdua"), "device is 'cdua'")

    def test_precision(self, config):
        refuse(config.replace(precision="float16"), "float16 needs a GPU")

    @pytest.mark.parametrize("name", ["wandb", "tensorboard"])
    def test_tracker(self, config, monkeypatch, name):
        monkeypatch.setattr(tracker.importlib.util, "find_spec", lambda _: None)
        refuse(config.replace(tracker=name), f"not installed: pip install {name}")

    def test_compiler(self, config, monkeypatch):
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("CXX", "clang++-99")
        refuse(config.replace(compile=True), r"compile needs a compiler.*clang\+\+-99.*leave comp")

    def test_disk(self, config, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 5_000_000))
        refuse(config, "the run needs about .. MB on the disk of .*where 5 MB are free: make room")

    def test_memory(self, config, monkeypatch):
        monkeypatch.setattr(plan.os, "sysconf", lambda _: 2000)  # pages, and bytes of one
        refuse(
            config, "a training step needs about .. MB of memory, and cpu has 4 MB: set chunk_size"
        )

    def test_memory_of_a_gpu(self, monkeypatch):
        """What a GPU would answer is made up: it needs none."""
        there = SimpleNamespace(total_memory=3_000_000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: there)
        plan._check_memory(2_999_999, torch.device("cuda"))
        with pytest.raises(SobookError, match="needs about 4 MB of memory, and cuda has 3 MB"):
            plan._check_memory(4_000_000, torch.device("cuda"))

    def test_folders_that_cannot_be_written(self, config, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        for run_dir in (tmp_path / "file", tmp_path / "file" / "run"):
            with pytest.raises(SobookError, match="cannot be written .*is a file"):
                fit(config.replace(run_dir=run_dir))
        monkeypatch.setattr(plan.os, "access", lambda *_: False)  # root may write anywhere
        refuse(config, "run cannot be written|data cannot be written .*is read-only")


def test_memory_of_a_step_is_about_what_torch_keeps():
    """Counted on a copy without memory, and measured by what is saved for the backward pass."""
    encoder = plan.Encoder.create("deit_micro_patch8_64", dim=64)
    weights = {weight.untyped_storage().data_ptr() for weight in encoder.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder.train()(torch.zeros(4, 3, 64, 64, dtype=torch.uint8))
    measured = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert 4 * 4 * plan.count_activations(encoder) == pytest.approx(measured, rel=0.3)


def test_disk_is_about_what_a_run_leaves(pictures):
    config = pictures(*[6] * 8, so_weight=1.0)
    before = make_plan(config, CPU)
    cache, folder = before.disk
    fit(config, progress=False)
    used = sum(file.stat().st_size for file in cache.glob("pixels-*/pixels.bin"))
    assert before.disk[cache] == pytest.approx(used, rel=0.4)
    kept = (config.folder() / "checkpoint.safetensors").stat().st_size
    assert 6 * kept < before.disk[folder] < 8 * kept  # it, what resuming needs, copies of both
    assert make_plan(config, CPU).disk[cache] == 0  # decoded already


class TestDryRun:
    def test_what_a_run_will_do(self, pictures):
        config = pictures(*[3] * 8, epochs=5)
        told = estimate.dry_run(config)
        for line in (
            "train: 6 images of 2 classes",
            "validation: 6 images of 2 classes",
            "test: 12 images of 4 classes",
            "training: 5 steps (epochs: 5, batches of 4 in each: 1)",
            "report: Recall@K for K = 1, 2, 4, 8",
            f"run folder: {config.folder()}",
        ):
            assert line in told.splitlines()
        assert re.search(r"^on cpu, in batches of 4: about \d+ minutes of training$", told, re.M)
        assert not config.folder().exists()

    def test_a_finished_run_is_opened(self, pictures):
        config = pictures(*[3] * 8)
        fit(config, progress=False)
        assert "is finished: it will be opened" in estimate.dry_run(config)
        with pytest.raises(SobookError, match="other settings .lr"):
            estimate.dry_run(config.replace(lr=1e-5))

    def test_a_batch_that_does_not_fit(self, pictures, monkeypatch):
        def halved(config, images, *, steps):
            return estimate.Estimate(config.batch_size, 2, 1.0, 1e9)

        monkeypatch.setattr(estimate, "estimate", halved)
        with pytest.raises(SobookError, match="batches of 4 do not fit .*: set chunk_size to 2"):
            estimate.dry_run(pictures(*[3] * 8))

    def test_minutes_do_not_depend_on_the_few_images_that_are_timed(self, pictures, monkeypatch):
        monkeypatch.setattr(estimate, "_measure", lambda config, steps: (config.batch_size, None))
        config = pictures(*[40] * 4, batch_size=40, selection="last")
        told = estimate.dry_run(config)
        assert f"in batches of 40: about {80 / 60:.0f} minutes of training" in told


def test_plans_are_plain_values(pictures):
    made = make_plan(pictures(*[3] * 8), CPU)
    assert dataclasses.is_dataclass(made) and made.data.batches == 1
    assert made.data.ks == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "too little memory",
        ),
        (
            torch._dynamo.exc.TorchDynamoException("no gcc"),
            r"not be compiled \(no gcc\): leave comp",
        ),
    ],
)
def test_memory_and_compilers_that_give_out_are_one_sentence(tmp_path, error, message):
    with pytest.raises(TrainingError, match=message), distributed.plain_errors(tmp_path):
        raise error


def test_chunks_and_batch_normalization_do_not_go_together():
    with pytest.raises(SobookError, match="resnet18 has batch normalization"):
        make_encoder(TrainConfig(encoder="resnet18", weights=None, chunk_size=4))
