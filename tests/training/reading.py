"""What the tests read in a run folder."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sobook.training.run import Run


def weights(run_dir) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / "checkpoint.safetensors")


def assert_same_run(one, other) -> None:
    """The same bits: weights, proxies of every epoch, and losses."""
    parts = [(weights(run), Run.load(run)) for run in (one, other)]
    (first, mine), (second, theirs) = parts
    assert first.keys() == second.keys()
    assert not [key for key in first if not torch.equal(first[key], second[key])]
    assert losses(one) == losses(other)
    for epoch in range(mine.config.epochs + 1):
        assert torch.equal(mine.proxies(epoch), theirs.proxies(epoch))
    for a, b in zip(mine.epochs, theirs.epochs, strict=True):  # means of interrupted epochs too
        timed = ("seconds", "images_per_second")
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


def resumes_at(config) -> tuple[int, int]:
    """Epoch and batch."""
    with safe_open(config.folder() / "resume.safetensors", "pt") as file:
        at = json.loads(file.metadata()["sobook"])
    return at["epoch"], at["batch"]


def losses(run_dir) -> list[tuple[int, float]]:
    lines = Run.load(run_dir).metrics
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]
