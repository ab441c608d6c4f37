"""The one configuration of a training run: every choice, with its unit and where it comes from.

`TrainConfig` is for fine-tuning; what it shares with training a head on frozen features
(`sobook.training.heads.HeadConfig`) is in `BaseConfig`. `identity` and `run_key` say when two runs
are the same.
"""

import dataclasses
import hashlib
import json
import typing
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sobook import files
from sobook.data import pictures
from sobook.data.image_sets import NAMES
from sobook.errors import SobookError, check_choice, check_fields, check_types

# Part of every identity: raise it when the same settings come to train differently.
SCHEMA = 2  # 2: no weight decay on norms and biases
# Where the data lie, and where and how a run computes, do not shape its result.
_NOT_IDENTITY = (
    *("root", "run_dir", "device", "workers", "checkpoint_minutes", "tracker", "chunk_size"),
)

# Beyond these a value is a slip, and would be noticed only hours later, or by the whole machine.
_MOST_EPOCHS = 9_999  # names of epochs in a run folder have four digits
_MOST_DIMENSIONS = 65_536
_MOST_PIXELS = 4_096
_MOST_WORKERS = 256

Config = TypeVar("Config", bound="BaseConfig")


@dataclass(frozen=True)
class BaseConfig:
    """What fine-tuning and training a head on frozen features have in common."""

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
    threshold: float = 0.0
    """b of Proxy Anchor, in units of cosine; 0 is the paper's."""
    threshold_lr: float = 0.0
    """Learning rate of b; 0: b is fixed."""
    so_weight: float = 0.0
    """λ of soft orthogonality; 0 is plain Proxy Anchor."""
    so_reduction: str = "mean"
    """mean (squared cosine of a pair) or sum (‖P̂P̂ᵀ−I‖²)."""

    epochs: int = 8
    """Passes over the training images, warm-up included."""
    batch_size: int = 40
    """B, images in a batch."""
    images_per_class: int = 0
    """0: batches drawn at random. m ≥ 2: m images each of B/m classes."""
    head_lr: float = 5e-3
    """Learning rate of the head."""
    proxy_lr: float = 1e-1
    """Learning rate of the proxies."""
    weight_decay: float = 1e-4
    """Of AdamW, on weights and proxies; not on norms and biases."""
    schedule: str = "cosine"
    """cosine (all rates fall to 0) or constant."""
    clip_norm: float = 10.0
    """Largest norm of the gradient."""
    validation_fraction: float = 0.2
    """Fraction of the training classes held out for validation."""
    seed: int = 0
    """Of everything random."""
    device: str | None = None
    """cpu, cuda, mps … None: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("dataset", self.dataset, NAMES)
        if self.token is not None:
            check_choice("token", self.token, ("cls", "dist", "mean"))
        check_choice("schedule", self.schedule, ("cosine", "constant"))
        check_choice("so_reduction", self.so_reduction, ("mean", "sum"))
        positive = ["batch_size", "head_lr", "proxy_lr", "clip_norm", "scale"]
        self._check(positive, lambda value: value > 0, "positive")
        not_negative = ["so_weight", "weight_decay", "threshold_lr"]
        self._check(not_negative, lambda value: value >= 0, "0 or more")
        self._check_range("epochs", 1, _MOST_EPOCHS)
        self._check_range("dim", 1, _MOST_DIMENSIONS)
        self._check_range("image_size", 1, _MOST_PIXELS)
        self._check_range("seed", 0, 2**32 - 1)
        self._check(["validation_fraction"], lambda value: 0 <= value < 1, "in [0, 1)")
        self._check(
            ["images_per_class"],
            lambda value: value == 0 or value >= 2,
            "0, for random batches, or at least 2",
        )

    def _check_range(self, name: str, lowest: int, highest: int) -> None:
        what = f"between {lowest} and {highest:,}"
        self._check([name], lambda value: value is None or lowest <= value <= highest, what)

    def _check(self, names: list[str], valid: Callable[[Any], bool], what: str) -> None:
        for name in names:
            if not valid(getattr(self, name)):
                raise SobookError(f"{name} is {getattr(self, name)}: it must be {what}.")

    @property
    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `sobook.data.load` and `sobook.data.notes` for these data."""
        return {"root": self.root, "allow_partial": self.allow_partial, **self.options}

    @property
    def encoder_options(self) -> dict[str, Any]:
        """Keyword arguments of `Encoder.create`, but the embedding dimension."""
        return {"weights": self.weights, "image_size": self.image_size, "token": self.token}

    @property
    def loss_settings(self) -> dict[str, Any]:
        """Keyword arguments of `sobook.SoftOrthogonalProxyAnchor`."""
        names = ("margin", "scale", "threshold", "so_weight", "so_reduction")
        settings = {name: getattr(self, name) for name in names}
        return {**settings, "learn_threshold": self.threshold_lr > 0}

    def replace(self: Config, **changes: Any) -> Config:
        """A copy with some fields changed."""
        return type(self).from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """The reverse of `to_dict`.

        Raises:
            SobookError: an unknown field, or a value that makes no sense.
        """
        check_fields(cls.__name__, values, [item.name for item in dataclasses.fields(cls)])
        return cls(**values)

    @classmethod
    def from_toml(cls: type[Config], values: dict[str, Any]) -> Config:
        """`from_dict` for values of a TOML file, which knows no None: there "none" says it.

        >>> TrainConfig.from_toml({"dim": "none"}).dim is None
        True
        """
        kinds = typing.get_type_hints(cls)
        for name, value in values.items():
            if value == "none" and type(None) in typing.get_args(kinds.get(name)):
                values = {**values, name: None}
        return cls.from_dict(values)


@dataclass(frozen=True)
class TrainConfig(BaseConfig):
    """What one training run does. The defaults are the quick run: a laptop, no network.

    `TrainConfig.recipe` gives the settings for the benchmarks, from ``data/recipes.toml``. They
    start from what is documented for DeiT with Proxy Anchor (HIER, Hyp-ViT, and the official Proxy
    Anchor code); the paper's own settings are not known to us, so every value is our choice.
    """

    lr: float = 1e-3
    """Learning rate of the backbone."""
    warmup_epochs: int = 1
    """First epochs in which only head and proxies learn and the backbone is frozen."""
    crop_scale: float = 0.4
    """Smallest fraction of the area that a random crop keeps."""
    selection: str = "validation"
    """Which epoch is kept: best on held-out training classes, the last one, or (peeking) the best
    on the test classes, which every report then says."""
    precision: str = "float32"
    """float32, bfloat16 or float16 (GPU only) for training the encoder; losses, proxies and all
    evaluation are float32."""
    gradient_checkpointing: bool = False
    """Keep fewer activations and compute them again: less memory, about a third slower."""
    chunk_size: int | None = None
    """Embed this many images of a batch at a time, and again for the gradient of the joint loss
    (gradient caching): the memory of a chunk, the batch of the recipe, about a third slower."""
    compile: bool = False
    """Compile the backbone with torch.compile: worth it for long runs on a GPU."""

    workers: int = 0
    """Threads that make batches ahead of need, in each training process."""
    checkpoint_minutes: float = 10.0
    """Checkpoints come after every epoch, and within one when this old; 0: at every step."""
    tracker: str | None = None
    """tensorboard or wandb: log there as well as to metrics.jsonl."""
    run_dir: str | None = None
    """Folder of the run. None: a name made from the settings, under <data root>/runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("selection", self.selection, ("validation", "last", "test"))
        check_choice("precision", self.precision, ("float32", "bfloat16", "float16"))
        if self.tracker is not None:
            check_choice("tracker", self.tracker, ("tensorboard", "wandb"))
        self._check(["lr"], lambda value: value > 0, "positive")
        self._check_range("workers", 0, _MOST_WORKERS)
        self._check_range("chunk_size", 1, 10**9)
        not_negative = ["warmup_epochs", "checkpoint_minutes"]
        self._check(not_negative, lambda value: value >= 0, "0 or more")
        self._check(["crop_scale"], lambda value: 0 < value <= 1, "in (0, 1]")

    @classmethod
    def recipe(cls, name: str, **changes: Any) -> "TrainConfig":
        """The settings of ``data/recipes.toml`` under a name, with some of them changed.

        >>> TrainConfig.recipe("cub200", seed=1).encoder
        'deit_small_distilled_patch16_224'

        Raises:
            SobookError: no recipe has that name.
        """
        if name == "paper":
            return cls.from_dict({**_paper_recipe(), **changes})
        check_choice("recipe", name, [*recipes(), "paper"])
        return cls.from_toml(recipes()[name]).replace(**changes)

    def differences(self, other: "TrainConfig") -> dict[str, tuple[Any, Any]]:
        """Fields that shape the result and differ: {name: (own value, other's value)}."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = [name for name in mine if name not in _NOT_IDENTITY]
        return {name: (mine[name], theirs[name]) for name in names if mine[name] != theirs[name]}

    def folder(self) -> Path:
        """The run folder: `run_dir`, or a name made from the settings."""
        if self.run_dir is not None:
            return Path(self.run_dir).expanduser()
        loss = f"so{self.so_weight:g}" if self.so_weight else "pa"
        encoder = self.encoder.replace("/", "-").replace(":", "-")  # of "hf-hub:timm/…"
        name = f"{self.dataset}-{encoder}-{loss}-seed{self.seed}-{run_key(self)[:8]}"
        return files.data_root() / "runs" / name


def identity(config: BaseConfig) -> dict[str, Any]:
    """Everything that shapes the result of a run; two runs of equal identity are the same run.

    These are all fields but those that say where data lie and how a run computes, defaults
    included, so that a default that changes does not bring back old results. For pictures of
    one's own ("folder") the content takes the place of the folder's name.

    Returns:
        Plain values: the name of the config's class, `SCHEMA`, the fields, and "content".
    """
    fields = {k: v for k, v in config.to_dict().items() if k not in _NOT_IDENTITY}
    content = _listing_hash(config.root) if config.dataset == "folder" else None
    return {"config": type(config).__name__, "schema": SCHEMA, **fields, "content": content}


def run_key(config: BaseConfig) -> str:
    """A short hash of the identity: the one name of a run, for its folder or its result."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _listing_hash(root: str | None) -> str:
    """Hash of relative paths and sizes of a folder's pictures: content, without reading it."""
    if root is None:  # not the folder one happens to be in
        raise SobookError("'folder' needs root, the folder that holds one folder for each class.")
    base, lines = Path(root).expanduser(), []
    for file in pictures.walk(base)[0] if base.is_dir() else ():
        name = unicodedata.normalize("NFC", file.relative_to(base).as_posix())  # as on any system
        lines.append(f"{name}|{file.stat().st_size}")
    listing = "\n".join(sorted(lines)).encode(errors="surrogatepass")  # names are any bytes
    return hashlib.sha256(listing).hexdigest()[:12]


@cache
def recipes() -> dict[str, dict]:
    """``data/recipes.toml``: name → the settings in which it differs from the defaults."""
    file = files.shipped("recipes.toml")
    text = files.read_toml(file)
    try:
        shared = {"deit_small": text.pop("deit_small"), "deit_tiny": text.pop("deit_tiny")}
        return {name: {**shared[own.pop("like")], **own} for name, own in text.items()}
    except (AttributeError, KeyError, TypeError) as error:  # it was edited
        raise SobookError(
            f"{file}: every recipe is a table with like = deit_small or deit_tiny ({error})."
        ) from None


def _paper_recipe() -> dict[str, Any]:
    """The settings of ``data/paper.toml``, once somebody has filled them in."""
    settings = files.read_toml(files.shipped("paper.toml"))
    if unknown := [name for name, value in settings.items() if value == ""]:
        raise SobookError(
            "the paper's own settings are not known to us; fill in data/paper.toml to train with "
            f"them. Missing: {', '.join(unknown)}."
        )
    if not settings.pop("unit_proxies"):
        raise SobookError("data/paper.toml: SO is implemented for proxies of unit length only.")
    return settings
