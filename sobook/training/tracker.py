"""Experiment trackers: the numbers of metrics.jsonl, sent to TensorBoard or Weights & Biases."""

import importlib.util
from pathlib import Path

from sobook.errors import SobookError, first_line
from sobook.training.config import TrainConfig


def check_installed(name: str) -> None:
    """Refuse a tracker whose package is not there, without importing it."""
    if importlib.util.find_spec(name) is None:
        raise SobookError(f"tracker {name!r} is not installed: pip install {name}")


class Tracker:
    """TensorBoard or Weights & Biases: `log` takes numbers by name, and their step."""

    def __init__(self, config: TrainConfig, path: Path):
        try:
            if config.tracker == "wandb":
                import wandb

                run = wandb.init(project="sobook", name=path.name, config=config.to_dict())
                self.log, self.close = run.log, run.finish
            else:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(path / "tensorboard"))
                self.log, self.close = self._add_scalars, self._writer.close
        except Exception as error:  # of its own, of the network, of packages it needs
            raise SobookError(
                f"tracker {config.tracker!r} does not start ({first_line(error)}): leave tracker "
                "out; the numbers are in metrics.jsonl."
            ) from None

    def _add_scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
