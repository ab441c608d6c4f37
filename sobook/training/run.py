"""The folder of a training run: what is written there, and how it is read back.

    config.json                       the settings, and the run's key
    metrics.jsonl                     one line per step and one per epoch, written as they come
    proxies/epoch_0000.safetensors …  the proxies at the start and after every epoch, float16
    checkpoint.safetensors            encoder and proxies of the epoch that was kept
    state.json                        which epoch that was, class names, versions, notes on the
                                      data, digests of the pictures and weights
    retrieval.json                    the measures on the test classes
    resume.safetensors                while unfinished: everything needed to resume

All files except metrics.jsonl are written atomically. ``$SOBOOK_MIRROR`` names a folder, e.g. on a
mounted drive, that gets a copy of the run with every checkpoint: file by file, and last what says
how far the run is, so that a run resumed from half a copy repeats the rest to the same bits.
"""

import contextlib
import dataclasses
import filecmp
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sobook import files, geometry
from sobook.data import image_sets
from sobook.data.image_sets import ImageSet
from sobook.encoder import Encoder, weights_digest
from sobook.errors import RunError, SobookError, first_line
from sobook.retrieval import Retrieval
from sobook.training.config import TrainConfig, pictures_digest, run_key
from sobook.training.processes import launched
from sobook.training.trainer import Trainer


@dataclass
class Progress:
    """Progress of a run; kept in resume.safetensors.

    Attributes:
        epoch, batch: what comes next. Epoch 0 trains nothing: it measures the start.
        best_epoch, best_recall: the epoch that is kept, and the Recall@1 that selected it.
        tied: the epoch that is kept is as good as the best one before it.
        sums: of the losses in this epoch's batches so far.
    """

    epoch: int = 0
    batch: int = 0
    best_epoch: int | None = None
    best_recall: float | None = None
    tied: bool = False
    sums: dict[str, float] = field(default_factory=dict)

    def steps(self, trainer: Trainer) -> int:
        """How many steps have been done."""
        batches = trainer.steps // trainer.config.epochs
        return max(0, self.epoch - 1) * batches + self.batch


@dataclass(eq=False)
class Run:
    """A training run on disk. Made by `sobook.training.fit`, read by `Run.load`.

    Attributes:
        path: the run folder.
        config: its `TrainConfig`.
        key: its `run_key`; None where config.json has none.
        progress: how far it is, while it trains.
        writes: whether this process writes; of several, only the main one does.
        track: sends numbers by name, and their step, to an experiment tracker.
    """

    path: Path
    config: TrainConfig
    key: str | None = None
    progress: Progress = field(default_factory=Progress, repr=False)
    writes: bool = field(default_factory=lambda: launched()[0] == 0, repr=False)
    track: Callable[[dict[str, float], int], object] | None = field(default=None, repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Run":
        """Open a run folder.

        Raises:
            RunError: the folder is not there, or holds no run.
        """
        path = Path(path).expanduser()
        values = _read_json(path / "config.json")
        key = values.pop("run_key", None)
        return cls(path, TrainConfig.from_dict(values), key)

    @classmethod
    def open(cls, config: TrainConfig) -> "Run":
        """The run of these settings, whether its folder is there or not; writes nothing.

        Raises:
            RunError: what is in the folder is not this run, or was made of other weights.
        """
        sets = None
        if config.dataset == "folder":  # its content is part of the key
            sets = image_sets.load_splits("folder", **config.load_options)
        key = run_key(config, sets)
        run = cls(config.folder(key), config, key)
        if sets is not None:
            run.sets = sets
        if (run.path / "config.json").is_file():
            written = cls.load(run.path)
            if written.key != key:
                changed = config.differences(written.config)
                what = [f"{k}: {old!r} → {new!r}" for k, (new, old) in changed.items()]
                if not what or sets is not None:
                    what.append("another version of sobook, or pictures that have changed since")
                raise RunError(
                    f"{run.path} holds a run with other settings ({', '.join(what)}): choose "
                    "another run_dir, or remove the folder."
                )
            if run.finished and config.weights not in (None, "pretrained", "micro"):
                encoder = Encoder.create(config.encoder, dim=None, **config.encoder_options)
                run.check_made_of({"weights": weights_digest(encoder.backbone)})
        elif any(file.name[0] != "." for file in run.path.glob("*")):
            raise RunError(f"{run.path} is not empty and not a run folder: choose another run_dir.")
        return run

    @cached_property
    def sets(self) -> dict[str, ImageSet]:
        """All parts of the run's data set, loaded once; `RunError` where they have changed."""
        sets = image_sets.load_splits(self.config.dataset, **self.config.load_options)
        self.check_made_of({"pictures": pictures_digest(sets)})
        return sets

    def check_made_of(self, digests: dict[str, str]) -> None:
        """Refuse pictures or weights that are not those this run was made of.

        Raises:
            RunError: which of them are others.
        """
        known = self.state.get("made_of", {}) if (self.path / "state.json").is_file() else {}
        if changed := [name for name in digests if known.get(name, digests[name]) != digests[name]]:
            raise RunError(
                f"the {' and '.join(changed)} are not those that {self.path} was trained with: "
                "restore them, name other data with --root, or train in another run_dir."
            )

    def check_same_data(self, other: "Run") -> None:
        """Refuse to set runs side by side that were tested on other pictures."""
        mine, theirs = (
            (run.config.dataset, run.state["test_classes"], run.state["made_of"]["pictures"])
            for run in (self, other)
        )
        if mine != theirs:
            raise RunError(
                f"{self.path} and {other.path} were tested on other pictures: compare runs on the "
                "same data."
            )

    @property
    def finished(self) -> bool:
        """Did training and evaluation come to their end?"""
        return (self.path / "retrieval.json").is_file()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, {"kind": "step" | "epoch", …}; a last half line is left out."""
        file = self.path / "metrics.jsonl"
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The lines of kind "epoch" alone; epoch 0 is the state before training."""
        return [line for line in self.metrics if line["kind"] == "epoch"]

    @property
    def state(self) -> dict[str, Any]:
        """The content of state.json: selected_epoch, class_names, notes, versions …"""
        return _read_json(self.path / "state.json")

    @property
    def retrieval(self) -> dict[str, Any]:
        """The measures on the test classes, see `sobook.retrieval.Retrieval.summary`."""
        return _read_json(self.path / "retrieval.json")

    def proxies(self, epoch: int | None = None) -> Tensor:
        """(C, D) float32 proxies after an epoch.

        Args:
            epoch: 0: before training; −1: the last one; None: the one that was kept.
        """
        epoch = self.state["selected_epoch"] if epoch is None else epoch
        saved = sorted(self.path.glob("proxies/epoch_*.safetensors"))
        if not -len(saved) <= epoch < len(saved):
            raise RunError(
                f"{self.path} has no proxies of epoch {epoch}: give 0..{len(saved) - 1}."
            )
        return load_file(saved[epoch])["proxies"].float()

    def encoder(self) -> Encoder:
        """The trained encoder of the epoch that was kept, on the CPU, in evaluation mode."""
        encoder = Encoder.create(weights=None, **self.state["encoder"])
        weights = load_file(self.path / "checkpoint.safetensors")
        del weights["proxies"]
        encoder.load_state_dict({key.removeprefix("encoder."): w for key, w in weights.items()})
        return encoder.eval()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create and lock the folder, and take the files of its mirror where that is ahead.

        Any other process that trains this run waits.
        """
        if not self.writes:
            yield
            return
        # Absolute, so that `sobook evaluate` finds the data from anywhere.
        root = self.config.root and os.path.abspath(os.path.expanduser(self.config.root))
        values = {"run_key": self.key, **self.config.to_dict(), "root": root}
        files.write_json(self.path / "config.json", values)
        with files.lock(self.path / ".lock"):
            if self._copy is not None:
                if not self._copy.parent.is_dir():
                    drive = self._copy.parent
                    raise RunError(f"SOBOOK_MIRROR: {drive} is not there: mount its drive.")
                if _position(self._copy) > _position(self.path):
                    copy_run(self._copy, self.path)
                    print(f"{self.path}: restored from {self._copy}")
            yield

    def resume(self, trainer: Trainer) -> None:
        """Load what an earlier process left, and drop the metrics that come again."""
        self.progress = _progress(self.path)
        if (file := self.path / "resume.safetensors").is_file():
            trainer.load(load_file(file))
        if self.writes:
            epoch, step = self.progress.epoch, self.progress.steps(trainer)
            kept = [x for x in self.metrics if x["epoch"] < epoch or x.get("step", step) < step]
            text = "".join(f"{json.dumps(line)}\n" for line in kept)
            files.write_text(self.path / "metrics.jsonl", text)

    def log(self, line: dict[str, Any], step: int) -> None:
        """Add a line to metrics.jsonl, where it can be read at once, and tell the tracker."""
        if not self.writes:
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        if self.track is not None:
            values = {f"{line['kind']}/{name}": line[name] for name in line if name != "kind"}
            self.track(values, step)

    def save(
        self,
        epoch: int,
        trainer: Trainer,
        losses: dict[str, float],
        facts: dict[str, Any],
        *,
        recall: float | None,
        keep: bool,
    ) -> None:
        """Write down an epoch: its numbers, its proxies, and the encoder where it is kept.

        Args:
            losses: numbers by name, for metrics.jsonl.
            facts: for state.json.
            recall: Recall@1 that selects the epoch, of two that are equal the later one.
            keep: whatever its recall.
        """
        before = self.progress
        if better := keep or recall is None or recall >= (before.best_recall or 0):
            tied = not keep and recall is not None and recall == before.best_recall
            self.progress = Progress(epoch + 1, 0, epoch, recall, tied)
        else:
            self.progress = dataclasses.replace(before, epoch=epoch + 1, batch=0, sums={})
        if not self.writes:
            return
        encoder, proxies = trainer.model, trainer.loss.proxies
        if better:
            weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
            write_tensors(self.path / "checkpoint.safetensors", {**weights, "proxies": proxies})
            packages = ("sobook", "torch", "torchvision", "timm")
            versions = {name: metadata.version(name) for name in packages}
            state: dict[str, Any] = {"selected_epoch": epoch, "selection_recall_at_1": recall}
            state |= {"encoder": encoder.settings(), **facts}
            state["versions"] = {**versions, "python": platform.python_version()}
            files.write_json(self.path / "state.json", state)
        shape = geometry.describe(proxies)
        measured = {} if recall is None else {"recall_at_1": recall}
        measured |= {"rms_cosine": shape.rms_cosine, "coherence": shape.coherence}
        measured["threshold"] = torch.as_tensor(trainer.loss.threshold).item()
        line = {"kind": "epoch", "epoch": epoch, **losses, **measured}
        self.log(line, self.progress.steps(trainer))
        file = self.path / "proxies" / f"epoch_{epoch:04d}.safetensors"
        write_tensors(file, {"proxies": proxies.to(torch.float16)})
        self.save_resume(trainer)

    def save_resume(self, trainer: Trainer) -> None:
        """Keep everything that resuming needs."""
        if self.writes:
            progress = dataclasses.asdict(self.progress)
            write_tensors(self.path / "resume.safetensors", trainer.state(), **progress)
            self.mirror()

    def finish(self, retrieval: Retrieval, notes: list[str]) -> None:
        """Write the measures on the test classes: the run is finished."""
        if not self.writes:
            return
        files.write_json(self.path / "retrieval.json", {**retrieval.summary(), "notes": notes})
        (self.path / "resume.safetensors").unlink(missing_ok=True)
        self.mirror()

    @property
    def _copy(self) -> Path | None:
        """The folder of this run in ``$SOBOOK_MIRROR``, if that is set."""
        root = os.environ.get("SOBOOK_MIRROR")
        if not root or not self.writes:
            return None
        return Path(root).expanduser() / self.config.replace(run_dir=None).folder(self.key).name

    def mirror(self) -> None:
        """Copy the folder to ``$SOBOOK_MIRROR``; where that fails, warn and continue."""
        if self._copy is None:
            return
        try:
            self._copy.mkdir(exist_ok=True)  # no parents: never create an unmounted drive's folder
            copy_run(self.path, self._copy)
        except (OSError, SobookError) as error:
            warnings.warn(
                f"the run could not be copied to {self._copy} ({first_line(error)}): training "
                "continues, and the next checkpoint is copied.",
                stacklevel=2,
            )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        why = "it is not a run folder."
        if (file.parent / "config.json").is_file():
            why = "the run is not finished; run `sobook train` on the same folder to resume it."
        raise RunError(f"{file.parent} has no {file.name}: {why}")
    return json.loads(file.read_text(encoding="utf-8"))


def write_tensors(file: Path, tensors: dict[str, Tensor], **facts: Any) -> None:
    """safetensors, atomically, with JSON metadata in its header."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with files.replacing(file) as partial:
        save_file(tensors, partial, {"sobook": json.dumps(facts)})


def copy_run(source: Path, target: Path) -> None:
    """Copy a run's files that have changed, and last those that say how far it is."""
    last = ("resume.safetensors", "retrieval.json")
    for file in sorted(source.rglob("*"), key=lambda file: file.name in last):
        inside = file.relative_to(source)
        if not file.is_file() or inside.parts[0].startswith((".", "tensorboard")):
            continue
        copy = target / inside
        if not copy.is_file() or not filecmp.cmp(file, copy):
            with files.replacing(copy) as partial:
                shutil.copy2(file, partial)
    if not (source / "resume.safetensors").exists():  # finished
        (target / "resume.safetensors").unlink(missing_ok=True)


def _progress(folder: Path) -> Progress:
    """Progress of the unfinished run in a folder."""
    if not (folder / "resume.safetensors").is_file():
        return Progress()
    with safe_open(folder / "resume.safetensors", "pt") as opened:
        return Progress(**json.loads(opened.metadata()["sobook"]))


def _position(folder: Path) -> tuple[bool, int, int]:
    """How far the run in a folder is, to be compared: finished, and what comes next."""
    progress = _progress(folder)
    return (folder / "retrieval.json").is_file(), progress.epoch, progress.batch
