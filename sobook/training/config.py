"""The one configuration of a training run: every choice, with its unit and where it comes from."""

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from sobook import files
from sobook.errors import SobookError, suggest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEDULES = ("cosine", "constant")
SELECTIONS = ("validation", "last", "test")
PRECISIONS = ("float32", "bfloat16", "float16")
# Where and how a run computes, not what: these do not tell two runs apart.
_NOT_PART_OF_THE_RESULT = ("run_dir", "device", "workers", "checkpoint_minutes", "tracker")
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class TrainConfig:
    """What one training run does. The defaults are the quick run: a laptop, no network.

    `TrainConfig.recipe` gives the settings for the benchmarks, from ``data/recipes.toml``. They
    start from what is documented for DeiT with Proxy Anchor (HIER, Hyp-ViT, and the official Proxy
    Anchor code); the paper's own settings are not known to us, so all of it is to be read as our
    choice.
    """

    dataset: str = "aviary"
    """One of aviary, cub200, cars196, sop, inshop, folder."""
    root: str | None = None
    """Folder that holds the data set's own folder. None: $SOBOOK_DATA, else data/."""
    options: dict[str, int] = field(default_factory=dict)
    """Options of the data set, e.g. species 40 seed 1 for the aviary."""
    allow_partial: bool = False
    """Accept a benchmark with images missing; every report of the run then says so."""

    encoder: str = "deit_micro_patch8_64"
    """Name of a timm model, or the bundled micro encoder."""
    weights: str | None = "pretrained"
    """pretrained, micro, a .safetensors or .pth file, or None for random weights."""
    image_size: int | None = None
    """Side of the input in pixels. None: the encoder's own."""
    token: str | None = None
    """Which token is the feature: cls, dist or mean. None: timm's way (distilled DeiT: mean)."""
    dim: int | None = 128
    """D, the embedding dimension of the head. None: no head."""

    margin: float = 0.1
    """δ of Proxy Anchor, in units of cosine."""
    scale: float = 32.0
    """α of Proxy Anchor."""
    so_weight: float = 0.0
    """λ of soft orthogonality; 0 is plain Proxy Anchor."""
    so_reduction: str = "mean"
    """mean (squared cosine of a pair) or sum (‖P̂P̂ᵀ−I‖²)."""

    epochs: int = 8
    """Passes over the training images, warm-up included."""
    warmup_epochs: int = 1
    """First epochs in which only head and proxies learn and the backbone stands still."""
    batch_size: int = 40
    """B, images in a batch."""
    images_per_class: int = 0
    """0: batches drawn at random. m ≥ 2: m images each of B/m classes."""
    crop_scale: float = 0.4
    """Least share of the area that a random crop keeps."""
    lr: float = 1e-3
    """Learning rate of the backbone."""
    head_lr: float = 5e-3
    """Learning rate of the head."""
    proxy_lr: float = 1e-1
    """Learning rate of the proxies."""
    weight_decay: float = 1e-4
    """Of AdamW, on everything that learns."""
    schedule: str = "cosine"
    """cosine (all rates fall to 0) or constant."""
    clip_norm: float = 10.0
    """Largest norm of the gradient."""

    validation_fraction: float = 0.2
    """Share of the training classes held out when selection is validation."""
    selection: str = "validation"
    """Which epoch is kept: best on held-out training classes, the last one, or (peeking) the best
    on the test classes, which every report then says."""
    seed: int = 0
    """Of everything random."""
    precision: str = "float32"
    """float32, bfloat16 or float16 (GPU only) for the encoder; losses and proxies are float32."""
    gradient_checkpointing: bool = False
    """Keep fewer activations and compute them again: less memory, about a third slower."""
    compile: bool = False
    """Compile the backbone with torch.compile: worth it for long runs on a GPU."""

    device: str | None = None
    """cpu, cuda, mps … None: a GPU where there is one."""
    workers: int = 0
    """Threads that make batches ahead of need, in each training process."""
    checkpoint_minutes: float = 10.0
    """Checkpoints come after every epoch, and within one when this old; 0: at every step."""
    tracker: str | None = None
    """tensorboard or wandb: log there as well as to metrics.jsonl, through Accelerate."""
    run_dir: str | None = None
    """Folder of the run. None: a name made from the settings, under <data root>/runs."""

    def __post_init__(self):
        for item in dataclasses.fields(self):  # λ = 100 and λ = 100.0 are one run, of one name
            value = getattr(self, item.name)
            if item.type in (float, "float") and type(value) is int:
                object.__setattr__(self, item.name, float(value))
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("selection", self.selection, SELECTIONS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("so_reduction", self.so_reduction, ("mean", "sum"))
        if self.tracker is not None:
            _check_choice("tracker", self.tracker, TRACKERS)
        for name in ("epochs", "batch_size", "lr", "head_lr", "proxy_lr", "clip_norm", "scale"):
            if not getattr(self, name) > 0:
                raise SobookError(f"{name} is {getattr(self, name)}: it must be positive.")
        not_negative = ("so_weight", "weight_decay", "warmup_epochs", "workers", "seed")
        for name in (*not_negative, "checkpoint_minutes"):
            if not getattr(self, name) >= 0:
                raise SobookError(f"{name} is {getattr(self, name)}: it must not be negative.")
        for name in ("validation_fraction", "crop_scale"):
            if not 0 < getattr(self, name) <= 1:
                raise SobookError(f"{name} is {getattr(self, name)}: it is a share, in (0, 1].")
        if self.images_per_class == 1 or self.images_per_class < 0:
            raise SobookError(
                f"images_per_class is {self.images_per_class}: give 0 for random batches, or at "
                "least 2."
            )
        for name in ("root", "run_dir"):  # a Path would not survive JSON
            if getattr(self, name) is not None:
                object.__setattr__(self, name, str(getattr(self, name)))
        if self.weights is not None:
            object.__setattr__(self, "weights", str(self.weights))

    @classmethod
    def recipe(cls, name: str, **changes) -> "TrainConfig":
        """The settings of ``data/recipes.toml`` under a name, with some of them changed.

        >>> TrainConfig.recipe("cub200", seed=1).encoder
        'deit_small_distilled_patch16_224'

        Raises:
            SobookError: no recipe has that name.
        """
        if name not in recipes():
            near = suggest(name, recipes())
            raise SobookError(f"unknown recipe {name!r}: there are {', '.join(recipes())}.{near}")
        return cls.from_dict({**recipes()[name], **changes})

    def replace(self, **changes) -> "TrainConfig":
        """A copy with some fields changed."""
        _check_fields(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TrainConfig":
        """The reverse of `to_dict`; unknown fields are refused by name."""
        _check_fields(values)
        return cls(**values)

    def differences(self, other: "TrainConfig") -> dict[str, tuple]:
        """Fields that change the result and differ: {name: (own value, other's value)}."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {
            name: (value, theirs[name])
            for name, value in mine.items()
            if name not in _NOT_PART_OF_THE_RESULT and value != theirs[name]
        }

    def folder(self) -> Path:
        """The run folder: `run_dir`, or a name made from the settings."""
        if self.run_dir is not None:
            return Path(self.run_dir).expanduser()
        telling = {
            name: value
            for name, value in self.to_dict().items()
            if name not in _NOT_PART_OF_THE_RESULT
            and not (name in ("gradient_checkpointing", "compile") and not value)  # came later
        }
        key = hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:8]
        loss = f"so{self.so_weight:g}" if self.so_weight else "pa"
        name = f"{self.dataset}-{self.encoder}-{loss}-seed{self.seed}-{key}"
        return files.data_root() / "runs" / name


@cache
def recipes() -> dict[str, dict]:
    """``data/recipes.toml``: name → the settings in which it differs from the defaults."""
    text = tomllib.loads(files.shipped("recipes.toml").read_text(encoding="utf-8"))
    shared = {"deit_small": text.pop("deit_small"), "deit_tiny": text.pop("deit_tiny")}
    return {name: {**shared[own.pop("like")], **own} for name, own in text.items()}


def _check_choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise SobookError(
            f"unknown {name} {value!r}: choose one of {', '.join(choices)}."
            f"{suggest(value, choices)}"
        )


def _check_fields(values) -> None:
    known = [item.name for item in dataclasses.fields(TrainConfig)]
    for name in values:
        if name not in known:
            raise SobookError(f"unknown setting {name!r} of TrainConfig.{suggest(name, known)}")
