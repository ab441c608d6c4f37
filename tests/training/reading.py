"""What the tests read in a run folder."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from sobook.training import run as run_folder
from sobook.training.run import Run


def weights(run_dir) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / "checkpoint.safetensors")


def assert_same_bits(one, other) -> None:
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different


def assert_same_proxies(one, other) -> None:
    one, other = (load_file(Path(run) / "proxies.safetensors") for run in (one, other))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def resumes_at(config) -> tuple[int, int]:
    """Epoch and batch."""
    _, at = run_folder.read_resume(config.folder())
    return at["epoch"], at["batch"]


def losses(run_dir) -> list[tuple[int, float]]:
    lines = Run.load(run_dir).metrics
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]
