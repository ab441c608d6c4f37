"""One process or several: over k of them a run computes the joint batch, and ends when one dies."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from sobook import files
from sobook.errors import SobookError
from sobook.training import loop as training, processes as distributed
from sobook.training.loop import fit
from sobook.training.run import Run
from tests import processes
from tests.training.reading import losses, weights

ROOT = Path(__file__).parents[2]


class TestOneProcess:
    def test_one_precision_after_another(self, config, tmp_path):
        for precision in ("float32", "bfloat16", "float32"):
            changed = config.replace(precision=precision, run_dir=tmp_path / "again", epochs=1)
            assert fit(changed, progress=False).finished
            shutil.rmtree(tmp_path / "again")

    def test_the_callers_accelerator_is_left_alone(self, config):
        accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        try:
            fit(config.replace(epochs=1), progress=False)
            assert accelerate.Accelerator().mixed_precision == "bf16"
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # for the other tests

    def test_a_device_that_is_not_there(self, config):
        with pytest.raises(SobookError, match="device is 'xpu:7', but cannot be used here"):
            fit(config.replace(device="xpu:7"), progress=False)
        assert not config.folder().exists()

    def test_sizes_that_a_scheduler_left_are_said_and_train_one_process(self, config, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "64")
        with pytest.warns(UserWarning, match="WORLD_SIZE is 64, but no launcher started"):
            run = fit(config.replace(epochs=1), progress=False)
        assert run.state["processes"] == 1

    def test_more_processes_than_gpus(self, config, monkeypatch):
        monkeypatch.setattr(files, "launched", lambda: (0, 2))
        monkeypatch.setattr(distributed, "choose_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(SobookError, match=r"2 processes were started here, where 1 GPU"):
            distributed.join(config)

    def test_processes_that_do_not_meet(self, config, monkeypatch):
        def alone(**_):
            raise torch.distributed.DistStoreError("Timed out waiting for clients")

        monkeypatch.setattr(files, "launched", lambda: (1, 2))
        monkeypatch.setattr(distributed, "PartialState", alone)
        with pytest.raises(SobookError, match="process 1 of 2 could not meet the others .Timed"):
            distributed.join(config)

    def test_a_size_that_accelerate_does_not_see(self, config, monkeypatch):
        state = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))
        monkeypatch.setattr(files, "launched", lambda: (0, 2))
        monkeypatch.setattr(distributed, "PartialState", lambda **_: state)
        with pytest.raises(SobookError, match="started 2 processes, but Accelerate sees 1"):
            distributed.join(config)


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

    def test_a_process_that_dies_ends_the_run_with_a_sentence(self, long_config):
        """Process 1 is killed at step 4; process 0 says so, soon."""
        began = time.monotonic()
        ends = processes.run_together(long_config, 2, at_step=(1, 4, signal.SIGKILL))
        assert time.monotonic() - began < 100
        assert ends[1][0] == -signal.SIGKILL
        code, message = ends[0]
        assert code == 1
        assert "another process of this run has died" in message and "resumes from it" in message
        fit(long_config, progress=False)  # in one process: it goes on all the same
        assert [step for step, _ in losses(long_config.run_dir)] == list(range(9))

    def test_every_process_returns_a_finished_run(self, long_config):
        """The main process writes late; the others used to return before it had written."""
        ends = processes.run_together(long_config.replace(epochs=1), 2, late_report=True)
        assert ends == [(0, None)] * 2

    def test_more_processes_than_images_in_a_batch(self, long_config):
        ends = processes.run_together(long_config.replace(batch_size=1), 2)
        assert all("batch_size is 1, but there are 2 processes" in message for _, message in ends)

    @pytest.mark.slow
    def test_the_command_of_the_readme(self, long_config):
        """Word for word, on a machine without GPUs; one of the two processes speaks."""
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        (command,) = re.findall(r"`(torchrun [^`]+ -m sobook train) …`", readme)
        options = " ".join(f"{key} {value}" for key, value in long_config.options.items())
        command += (
            f" --root {long_config.root} --options {options} --dim 16 --batch-size 8 --epochs 1 "
            f"--selection last --run-dir {long_config.run_dir}"
        )
        done = subprocess.run(
            command.split(),
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("R@1") == 1
        assert Run.load(long_config.run_dir).state["processes"] == 2


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
