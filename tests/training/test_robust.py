"""What the training loop promises when things go wrong, and on several processes.

Killed at any moment a run ends with the same bits; over k processes it computes the joint batch;
a full disk, NaN or a dead process end it with one sentence and leave the last checkpoint whole.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sobook.data import loader, pixels
from sobook.errors import SobookError, TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training import distributed, loop as training, run_folder
from sobook.training.config import TrainConfig
from sobook.training.loop import fit
from sobook.training.run_folder import Run
from tests import processes

KILLS = 30


@pytest.fixture(scope="module")
def settings(tiny_aviary, tiny_options):
    """Four training species and batches of 8: three steps an epoch."""
    return TrainConfig(
        root=tiny_aviary, options=tiny_options, dim=16, batch_size=8, epochs=3, so_weight=10.0,
        selection="last", device="cpu",
    )  # fmt: skip


@pytest.fixture
def config(settings, tmp_path):
    return settings.replace(run_dir=tmp_path / "run")


def weights(run_dir) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / "checkpoint.safetensors")


def assert_same_bits(one, other) -> None:
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


def resumes_at(config) -> tuple[int, int]:
    """Epoch and batch."""
    _, at = run_folder.read_resume(config.folder())
    return at["epoch"], at["batch"]


def losses(run_dir) -> list[tuple[int, float]]:
    lines = Run.load(run_dir).metrics
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]


def test_two_processes_at_one_run_train_it_once(config):
    """As when two notebooks that share a run are started together."""
    both = [processes.start(config) for _ in range(2)]
    for process, queue in both:
        process.join(120)
        assert process.exitcode == 0 and queue.empty()
    steps = [step for step, _ in losses(config.run_dir)]
    assert steps == list(range(9))  # 3 epochs of 3 steps, none twice
    assert Run.load(config.run_dir).finished


def test_a_folder_left_by_a_kill_while_it_was_made_is_no_obstacle(config):
    config.folder().mkdir()
    (config.folder() / ".config.json.123.partial").write_text("{")
    assert run_folder.create(config).path == config.folder()


class TestKilled:
    @pytest.mark.slow
    def test_at_random_moments(self, settings, tmp_path):
        """30 SIGKILLs in any phase; each time the run is done, its bits are compared.

        With workers or without: the number changes from start to start. Checkpoints come at every
        step, so that a run that is always killed early still gets on.
        """
        rng = np.random.default_rng(0)
        settings = settings.replace(selection="validation", validation_fraction=0.5, batch_size=4)
        never = settings.replace(run_dir=tmp_path / "never")
        assert processes.run_alone(never) == 0
        kills = finished = 0
        while kills < KILLS or finished == 0:
            run = settings.replace(
                run_dir=tmp_path / f"killed-{finished}",
                workers=int(rng.integers(0, 3)),
                checkpoint_minutes=0.0,
            )
            process, _ = processes.start(run)
            process.join(rng.uniform(0.05, 1.5) if kills < KILLS else 120)
            if process.exitcode is None:
                process.kill()
                process.join()
                kills += 1
                continue
            assert process.exitcode == 0
            assert_same_bits(run.run_dir, never.run_dir)
            assert losses(run.run_dir) == losses(never.run_dir)
            assert_same_proxies(run.run_dir, never.run_dir)
            finished += 1
        assert kills >= KILLS

    def test_within_an_epoch_it_resumes_at_the_last_checkpoint(self, config, tmp_path):
        """Killed before step 4 with a checkpoint at each step: step 4 comes next, not step 3."""
        config = config.replace(checkpoint_minutes=0.0)
        process, _ = processes.start(config, at_step=(0, 4, signal.SIGKILL))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert resumes_at(config) == (2, 1)
        never = config.replace(run_dir=tmp_path / "never")
        for run in (config, never):  # bits are the same for the same number of threads only
            assert processes.run_alone(run) == 0
        assert [step for step, _ in losses(config.run_dir)] == list(range(9))
        assert losses(config.run_dir) == losses(never.run_dir)
        assert_same_bits(config.run_dir, never.run_dir)
        assert_same_proxies(config.run_dir, never.run_dir)

    def test_half_a_line_of_metrics_is_not_read(self, config):
        run = fit(config, progress=False)
        before = len(run.metrics)
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "step", "epo')
        assert len(run.metrics) == before


def assert_same_proxies(one, other) -> None:
    one, other = (load_file(Path(run) / "proxies.safetensors") for run in (one, other))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """21 steps in one process."""
    config = settings.replace(epochs=7, run_dir=tmp_path_factory.mktemp("alone") / "run")
    return fit(config, progress=False)


class TestManyProcesses:
    @pytest.mark.parametrize("number", [2, 3])  # 8 images over 3 processes: 3, 2 and 3
    def test_same_parameters_as_one_process(self, alone, tmp_path, number):
        config = alone.config.replace(run_dir=tmp_path / "run")
        ends = processes.run_together(config, number)
        assert ends == [(0, None)] * number
        one, many = weights(alone.path), weights(config.run_dir)
        start = beginning(config)
        for key, value in one.items():
            moved = without_key_bias(key, value - start[key]).norm()
            apart = without_key_bias(key, many[key] - value).norm()
            assert apart <= 1e-3 * moved, f"{key}: {apart / moved:.1e} of what training moved"
        first, last = (np.array(losses(run)) for run in (alone.path, config.run_dir))
        np.testing.assert_allclose(first, last, rtol=1e-4)
        assert Run.load(config.run_dir).retrieval["recall"] == alone.retrieval["recall"]

    def test_a_process_that_dies_ends_the_run_with_a_sentence(self, config):
        """Process 1 is killed at step 4; process 0 says so, soon."""
        began = time.monotonic()
        ends = processes.run_together(config, 2, at_step=(1, 4, signal.SIGKILL))
        assert time.monotonic() - began < 100
        assert ends[1][0] == -signal.SIGKILL
        code, message = ends[0]
        assert code == 1
        assert "another process of this run has died" in message and "resumes from it" in message
        fit(config, progress=False)  # in one process: it goes on all the same
        assert [step for step, _ in losses(config.run_dir)] == list(range(9))

    def test_every_process_returns_a_finished_run(self, config):
        """The main process writes late; the others used to return before it had written."""
        ends = processes.run_together(config.replace(epochs=1), 2, late_report=True)
        assert ends == [(0, None)] * 2

    def test_more_processes_than_images_in_a_batch(self, config):
        ends = processes.run_together(config.replace(batch_size=1), 2)
        assert all("batch_size is 1, but there are 2 processes" in message for _, message in ends)

    @pytest.mark.slow
    def test_from_the_command_line(self, config):
        """Two processes by torchrun, as Accelerate's launcher starts them on GPUs; one speaks."""
        options = " ".join(f"{key} {value}" for key, value in config.options.items())
        command = (
            f"-m torch.distributed.run --nproc_per_node 2 --master_port {processes.free_port()} "
            f"-m sobook train --root {config.root} --options {options} --dim 16 --batch-size 8 "
            f"--epochs 1 --selection last --device cpu --run-dir {config.run_dir}"
        )
        done = subprocess.run(
            [sys.executable, *command.split()],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("R@1") == 1
        assert Run.load(config.run_dir).state["processes"] == 2


def beginning(config) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    start = training.FineTuning(Run(config.folder(), config), distributed.join(config))
    found = {f"encoder.{key}": value for key, value in start.encoder.state_dict().items()}
    return {**found, "proxies": start.loss.proxies.detach()}


def without_key_bias(key: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor without what does not matter: the biases of attention's keys.

    Attention does not depend on them, so their gradients are rounding alone, which AdamW, dividing
    each gradient by its own size, turns into whole steps.
    """
    if not key.endswith("qkv.bias"):
        return value
    query, _, of_value = value.chunk(3)
    return torch.cat([query, of_value])


class TestDisk:
    def test_full_while_saving(self, config, tmp_path, monkeypatch):
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
            fit(config, progress=False)
        assert not list(config.folder().glob("*partial*"))
        assert resumes_at(config) == (2, 0)
        monkeypatch.undo()
        never = fit(config.replace(run_dir=tmp_path / "never"), progress=False)
        assert_same_bits(fit(config, progress=False).path, never.path)

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

    def test_read_only_folder(self, config, monkeypatch):
        def read_only(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", read_only)
        with pytest.raises(SobookError, match="Read-only file system.*write permission"):
            run_folder.create(config)


class TestNotANumber:
    def test_in_a_batch(self, config, monkeypatch):
        """NaN pictures at step 4: the step, the part and the last checkpoint are named."""
        original = loader.TrainingBatches.cut

        def poisoned(batches, number, drawn):
            pictures, labels = original(batches, number, drawn)
            if batches.seed[1] == 2 and number == 1:
                pictures = pictures.float()
                pictures[3, 0, 5, 5] = torch.nan
            return pictures, labels

        monkeypatch.setattr(loader.TrainingBatches, "cut", poisoned)
        with pytest.raises(TrainingError, match="an embedding became nan at step 4") as caught:
            fit(config, progress=False)
        assert str(config.folder() / "resume.safetensors") in str(caught.value)
        assert resumes_at(config) == (2, 0)
        monkeypatch.undo()
        assert fit(config, progress=False).finished  # the checkpoint it names is good

    def test_in_the_gradient(self, config, monkeypatch):
        """A loss that is a number with a gradient that is none."""
        parts = SoftOrthogonalProxyAnchor.parts

        def rough(self, embeddings, labels):
            found = parts(self, embeddings, labels)
            return {**found, "loss": found["loss"] + (self.proxies[0, 0] * 0).square().sqrt()}

        monkeypatch.setattr(SoftOrthogonalProxyAnchor, "parts", rough)
        with pytest.raises(TrainingError, match="the gradient became nan at step 0"):
            fit(config, progress=False)


class TestWorker:
    def test_an_error_while_making_a_batch_ends_the_run(self, config, monkeypatch):
        """Batches are made by threads: what goes wrong there reaches the one who trains."""
        original = loader.TrainingBatches.cut

        def failing(batches, number, drawn):
            if batches.seed[1] == 2:
                raise pixels.ImageError("image x.jpg cannot be read")
            return original(batches, number, drawn)

        monkeypatch.setattr(loader.TrainingBatches, "cut", failing)
        with pytest.raises(pixels.ImageError, match="x.jpg"):
            fit(config.replace(workers=2), progress=False)
        monkeypatch.undo()
        assert resumes_at(config) == (2, 0)
        assert fit(config, progress=False).finished


class TestPrecision:
    def test_bfloat16_keeps_proxies_and_loss_in_float32(self, config):
        run = fit(config.replace(precision="bfloat16"), progress=False)
        assert weights(run.path)["proxies"].dtype == torch.float32
        assert all(np.isfinite(loss) for _, loss in losses(run.path))

    def test_float16_needs_a_gpu(self, config):
        with pytest.raises(ValueError, match="float16 needs a GPU: choose bfloat16"):
            fit(config.replace(precision="float16"), progress=False)


class TestSeen:
    def test_what_an_epoch_tells(self, config):
        last = fit(config, progress=False).epochs[-1]
        parts = {"proxy_anchor", "soft_orthogonality", "loss", "rms_cosine", "coherence"}
        gradients = {"gradient_norm", "gradient_norm_largest", "gradients_clipped"}
        assert parts | gradients | {"images_per_second"} <= last.keys()
        assert 0 <= last["gradients_clipped"] <= 1

    def test_bar(self, config, capsys, monkeypatch):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        fit(config.replace(selection="validation", validation_fraction=0.5, batch_size=4))
        shown = capsys.readouterr().err
        for part in ("PA ", "SO ", "R@1 ", "img"):
            assert part in shown

    def test_tensorboard(self, config):
        pytest.importorskip("tensorboard")
        run = fit(config.replace(tracker="tensorboard"), progress=False)
        assert list(run.path.rglob("events.out.tfevents*"))

    def test_a_tracker_that_is_not_installed(self, config, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(SobookError, match="not installed: pip install wandb"):
            fit(config.replace(tracker="wandb"), progress=False)

    def test_gradient_checkpointing_changes_nothing_but_memory(self, config, tmp_path):
        plain = fit(config, progress=False)
        again = fit(
            config.replace(gradient_checkpointing=True, run_dir=tmp_path / "again"), progress=False
        )
        np.testing.assert_allclose(losses(plain.path), losses(again.path), rtol=1e-5)
