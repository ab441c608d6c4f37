"""One process or several: over k of them a run computes the joint batch."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sobook.errors import SobookError
from sobook.training.loop import fit, prepare
from sobook.training.processes import Processes, join
from sobook.training.run import Run
from tests import processes
from tests.training.reading import losses, weights

ROOT = Path(__file__).parents[2]


class TestJoin:
    @pytest.mark.parametrize("name", ["xpu:7", "cuda:77", "cdua"])
    def test_a_device_that_is_not_there(self, config, name):
        with pytest.raises(SobookError, match=name):
            fit(config.replace(device=name), progress=False)
        assert not config.folder().exists()

    @pytest.mark.parametrize("launcher", [{}, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}])
    def test_alone_unless_torchrun_started_several(self, monkeypatch, launcher):
        for name, value in {"WORLD_SIZE": "64", "RANK": "3", **launcher}.items():
            monkeypatch.setenv(name, value)
        assert join("cpu").count == 1
        assert not torch.distributed.is_initialized()


def test_local_slices_are_as_even_as_can_be():
    parts = [Processes(torch.device("cpu"), 3, rank).local_slice(8) for rank in range(3)]
    assert [len(range(8)[part]) for part in parts] == [3, 2, 3]
    assert [row for part in parts for row in range(8)[part]] == list(range(8))


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """21 steps in one process: after fewer, rounding is a larger part of what training moved."""
    config = settings.replace(epochs=7, run_dir=tmp_path_factory.mktemp("alone") / "run")
    return fit(config, progress=False)


class TestManyProcesses:
    @pytest.mark.parametrize("number", [2, 3])  # 8 images over 3 processes: 3, 2 and 3
    def test_same_parameters_as_one_process(self, alone, tmp_path, number):
        config = alone.config.replace(run_dir=tmp_path / "run")
        assert processes.run_together(config, number) == [(0, None)] * number
        one, many = weights(alone.path), weights(config.run_dir)
        start = beginning(config)
        for key, value in one.items():
            moved = without_key_bias(key, value - start[key]).norm()
            apart = without_key_bias(key, many[key] - value).norm()
            assert apart <= 1e-3 * moved, f"{key}: {apart / moved:.1e} of what training moved"
        first, last = (np.array(losses(run)) for run in (alone.path, config.run_dir))
        np.testing.assert_allclose(first, last, rtol=1e-4)
        assert Run.load(config.run_dir).retrieval["recall"] == alone.retrieval["recall"]

    def test_a_process_that_dies_ends_the_run(self, config):
        """Process 1 is killed at step 4; process 0 ends soon, and the run resumes alone."""
        ends = processes.run_together(config, 2, at_step=(1, 4, signal.SIGKILL))
        assert [end[0] for end in ends] == [1, -signal.SIGKILL]
        fit(config, progress=False)
        assert [step for step, _ in losses(config.run_dir)] == list(range(9))

    def test_the_command_of_the_readme(self, config):
        """On a machine without GPUs; one of the two processes reports."""
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        (command,) = re.findall(r"`(torchrun --nproc_per_node 2 -m sobook train) …`", readme)
        options = " ".join(f"{key} {value}" for key, value in config.options.items())
        command += (
            f" --root {config.root} --options {options} --dim 16 --batch-size 8 --epochs 1 "
            f"--selection last --run-dir {config.run_dir}"
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
        assert Run.load(config.run_dir).state["processes"] == 2


def beginning(config) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    _, trainer = prepare(Run.open(config), Processes(torch.device("cpu")))
    start = {f"encoder.{key}": value for key, value in trainer.model.state_dict().items()}
    return {**start, "proxies": trainer.loss.proxies.detach()}


def without_key_bias(key: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor without the biases of attention's keys.

    Attention does not depend on them, so their gradients are rounding alone, which AdamW, dividing
    each gradient by its own size, turns into whole steps.
    """
    if not key.endswith("qkv.bias"):
        return value
    query, _, of_value = value.chunk(3)
    return torch.cat([query, of_value])
