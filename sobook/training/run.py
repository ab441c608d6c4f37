"""The folder of a training run: what is written there, and how it is read back.

    config.json             the settings, and the run's key
    metrics.jsonl           one line per step and one per epoch, written as they come
    proxies.safetensors     the proxies at the start and after every epoch, float16
    checkpoint.safetensors  encoder and proxies of the epoch that was kept
    state.json              which epoch that was, class names, versions, what to know of the data
    retrieval.json          the measures on the test classes
    resume.safetensors      while unfinished: everything needed to resume
    .lock                   held by the process that trains

Every file but metrics.jsonl is written under another name first and then renamed, so none is ever
half there. Of metrics.jsonl the last line can be half there, and is then not read.
"""

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sobook import __version__, files
from sobook.encoder import Encoder
from sobook.errors import RunError, SobookError, first_line
from sobook.retrieval import Retrieval
from sobook.training.config import TrainConfig, run_key

FILES = (
    "config.json",
    "metrics.jsonl",
    "proxies.safetensors",
    "checkpoint.safetensors",
    "state.json",
    "retrieval.json",
    "resume.safetensors",
)
NOTHING = "00000-000000"  # `progress` without a checkpoint


@dataclass(frozen=True)
class Run:
    """A training run on disk. Made by `sobook.training.fit`, read by `Run.load`.

    Attributes:
        path: the run folder.
        config: its `TrainConfig`.
    """

    path: Path
    config: TrainConfig

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Run":
        """Open a run folder.

        Raises:
            RunError: the folder is not there, or holds no run.
        """
        path = Path(path).expanduser()
        if not os.path.isfile(path / "config.json"):  # False also where nobody may look
            raise RunError(
                f"{path} is not a run folder: it has no config.json that `sobook train` wrote."
            )
        values = _read_json(path / "config.json")
        values.pop("run_key", None)
        try:
            return cls(path, TrainConfig.from_dict(values))
        except (SobookError, TypeError) as error:  # a field unknown here, or of another type
            raise RunError(
                f"{path} holds a run of another version of sobook ({error}): use that version "
                "(state.json names it), or train it anew in another folder."
            ) from None

    @property
    def finished(self) -> bool:
        """Did training and evaluation come to their end?"""
        return (self.path / "retrieval.json").is_file()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, {"kind": "step" | "epoch", …}."""
        return _metric_lines(self.path)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of kind "epoch" alone; epoch 0 is the state before training."""
        return [line for line in self.metrics if line["kind"] == "epoch"]

    @property
    def state(self) -> dict[str, Any]:
        """What state.json holds: selected_epoch, class_names, notes, versions …"""
        return _read_json(self._file("state.json"))

    @property
    def retrieval(self) -> dict[str, Any]:
        """The measures on the test classes, see `sobook.retrieval.Retrieval.summary`."""
        return _read_json(self._file("retrieval.json"))

    def proxies(self, epoch: int | None = None) -> Tensor:
        """(C, D) float32 proxies after an epoch.

        Args:
            epoch: 0: before training; −1: the last one; None: the one that was kept.
        """
        epoch = self.state["selected_epoch"] if epoch is None else epoch
        file = self._file("proxies.safetensors")
        with _opened(file) as every:  # of SOP 0.4 GB, of which one epoch is read
            count = len(every.keys())
            if not -count <= epoch < count:
                raise RunError(f"{self.path} has no proxies of epoch {epoch}: give 0..{count - 1}.")
            return every.get_tensor(_epoch_key(epoch % count)).float()

    def encoder(self) -> Encoder:
        """The trained encoder of the epoch that was kept, on the CPU, in evaluation mode."""
        weights = _read_tensors(self._file("checkpoint.safetensors"))
        weights.pop("proxies", None)
        try:
            encoder = Encoder.create(weights=None, **self.state["encoder"])
            encoder.load_state_dict({key.removeprefix("encoder."): w for key, w in weights.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            raise RunError(
                f"the encoder of {self.path} does not fit this version of sobook or timm "
                f"({first_line(error)}): use the versions that its state.json names."
            ) from None
        return encoder.eval()

    def _file(self, name: str) -> Path:
        file = self.path / name
        if not file.is_file():
            raise RunError(
                f"{self.path} has no {name}: the run is not finished; run `sobook train` on the "
                "same folder to resume it."
            )
        return file


def find(config: TrainConfig) -> Run | None:
    """The run of these settings, if its folder is there.

    Raises:
        RunError: what is in the folder is not this run.
    """
    path = config.folder()
    if (path / "config.json").is_file():
        changed = config.differences(Run.load(path).config)
        listed = ", ".join(f"{k}: {old!r} → {new!r}" for k, (new, old) in changed.items())
        if listed or _read_json(path / "config.json").get("run_key") != run_key(config):
            what = listed or "of another version of sobook, or pictures that have changed since"
            raise RunError(
                f"{path} holds a run with other settings ({what}): choose another run_dir, or "
                "remove the folder."
            )
        return Run(path, config)
    if path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir()):
        raise RunError(f"{path} is not empty and not a run folder: choose another run_dir.")
    return None


def create(config: TrainConfig) -> Run:
    """Make the folder of a run, or reopen it: config.json then says where the data lie now.

    The caller holds the folder, see `held`.
    """
    run = find(config) or Run(config.folder(), config)
    if run.finished:  # meanwhile, by another process
        return run
    # Absolute, so that `sobook evaluate` finds the data from anywhere.
    here = config.replace(root=config.root and os.path.abspath(os.path.expanduser(config.root)))
    values = {"run_key": run_key(config), **here.to_dict()}
    file = run.path / "config.json"
    if not file.exists() or _read_json(file) != values:
        files.write_json(file, values)
    return run


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a run folder: whoever else wants to train that run waits, and then finds it finished."""
    with files.lock(path / ".lock"):
        for partial in path.glob(".tmp??????"):  # of safetensors
            files.remove(partial)
        yield


def write_tensors(file: Path, tensors: dict[str, Tensor], **metadata: Any) -> None:
    """safetensors, atomically, with JSON metadata in its header."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with files.replacing(file) as partial:
        save_file(tensors, partial, {"sobook": json.dumps(metadata)})


def write_resume(path: Path, state: dict[str, Any], at: dict[str, Any]) -> None:
    """Keep the trainer's state, and where in the run it stands."""
    parts = {"model": state["model"], "loss": state["loss"]}
    parts |= {f"optimizer.{number}": values for number, values in state["optimizer"].items()}
    tensors: dict[str, Tensor] = {}
    for part, values in parts.items():
        tensors |= {f"{part}.{name}": value for name, value in values.items()}
    write_tensors(path / "resume.safetensors", tensors, **at, scaler=state["scaler"])


def read_resume(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What `write_resume` wrote, or None."""
    file = path / "resume.safetensors"
    if not file.exists():
        return None
    tensors = _read_tensors(file)
    with safe_open(file, "pt") as opened:
        at = json.loads(opened.metadata()["sobook"])
    state: dict[str, Any] = {"model": {}, "loss": {}, "optimizer": {}, "scaler": at["scaler"]}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        if part == "optimizer":
            number, _, name = name.partition(".")
            state[part].setdefault(int(number), {})[name] = value
        else:
            state[part][name] = value
    return state, at


def progress(path: Path) -> str:
    """How far a run is, as text that sorts: epoch and batch to resume with, or "finished"."""
    if (path / "retrieval.json").is_file():
        return "finished"
    file = path / "resume.safetensors"
    if not file.exists():
        return NOTHING
    with _opened(file) as opened:
        at = json.loads(opened.metadata()["sobook"])
    return f"{at['epoch']:05d}-{at['batch']:06d}"


def write_checkpoint(path: Path, encoder: Encoder, proxies: Tensor, state: dict) -> None:
    """Keep encoder and proxies of an epoch, and write down what to know of them."""
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    write_tensors(path / "checkpoint.safetensors", {**weights, "proxies": proxies})
    versions = {
        "sobook": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    files.write_json(path / "state.json", {**state, "versions": versions})


def write_retrieval(path: Path, retrieval: Retrieval, notes: list[str]) -> None:
    """Write the measures on the test classes: the run is finished."""
    files.write_json(path / "retrieval.json", {**retrieval.summary(), "notes": notes})
    (path / "resume.safetensors").unlink(missing_ok=True)


def write_proxies(path: Path, epoch: int, proxies: Tensor) -> None:
    """Add the proxies of an epoch; those of later epochs, left by a killed run, go."""
    file = path / "proxies.safetensors"
    kept = _read_tensors(file) if file.exists() else {}
    kept = {key: value for key, value in kept.items() if key < _epoch_key(epoch)}
    write_tensors(file, {**kept, _epoch_key(epoch): proxies.to(torch.float16)})


def append_metrics(path: Path, line: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl; it can be read at once."""
    try:
        with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
    except OSError as error:
        raise RunError(f"{path} could not be written ({error.strerror}).") from None


def forget_metrics(path: Path, *, epoch: int, step: int) -> None:
    """Drop what a killed run wrote after the state it resumes from: that comes again."""
    kept = []
    for line in _metric_lines(path):
        if line["step"] < step if line["kind"] == "step" else line["epoch"] < epoch:
            kept.append(f"{json.dumps(line)}\n")
    files.write_text(path / "metrics.jsonl", "".join(kept))


def epoch_means(run: Run, epoch: int) -> dict[str, float]:
    """Means over the steps of an epoch, those before an interruption included."""
    lines = [line for line in run.metrics if line["kind"] == "step" and line["epoch"] == epoch]
    names = ("proxy_anchor", "soft_orthogonality", "loss", "gradient_norm")
    means = {name: sum(line[name] for line in lines) / len(lines) for name in names}
    norms = [line["gradient_norm"] for line in lines]
    clipped = sum(norm > run.config.clip_norm for norm in norms) / len(norms)
    return {**means, "gradient_norm_largest": max(norms), "gradients_clipped": clipped}


def _metric_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: the last one may have been cut off by a kill or a full disk."""
    file = path / "metrics.jsonl"
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    try:
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except json.JSONDecodeError as error:
        raise _damaged(file, error) from None


def _epoch_key(epoch: int) -> str:
    return f"epoch_{epoch:04d}"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{file} cannot be read ({error.strerror}): ask its owner.") from None
    except ValueError as error:  # of JSON and of UTF-8 alike
        raise _damaged(file, error) from None
    if not isinstance(values, dict):
        raise _damaged(file, ValueError("no object"))
    return values


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise _damaged(file, error) from None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file, of which each tensor is read when it is asked for."""
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except SafetensorError as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> RunError:
    kind = "safetensors file" if file.suffix == ".safetensors" else "JSON"
    return RunError(
        f"{file} is not valid {kind} ({first_line(error)}): the run folder is damaged; restore "
        "that file, or remove the folder and train anew."
    )
