"""The one configuration of a training run: every choice, with its unit and where it comes from.

`TrainConfig` is for fine-tuning; what it shares with training a head on frozen features
(`sobook.training.heads.HeadConfig`) is in `BaseConfig`. `run_key` says when two runs are the same.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sobook import files
from sobook.data import image_sets, pictures
from sobook.data.image_sets import ImageSet
from sobook.errors import SobookError, check_choice, check_fields, check_types

# Part of every run key: raise it when the same settings come to train differently.
SCHEMA = 2  # 2: no weight decay on norms and biases
# Where the data lie, and where and how a run computes, do not shape its result.
NOT_IN_KEY = ["root", "run_dir", "device", "workers", "checkpoint_minutes", "tracker", "chunk_size"]
_CHOICES = {
    "dataset": image_sets.NAMES,
    "token": ("cls", "dist", "mean"),
    "schedule": ("cosine", "constant"),
    "so_reduction": ("mean", "sum"),
    "selection": ("validation", "last", "test"),
    "precision": ("float32", "bfloat16", "float16"),
    "tracker": ("tensorboard", "wandb"),
}
# Values outside these limits are slips that would otherwise be noticed hours later, or never.
_POSITIVE = "epochs batch_size lr head_lr proxy_lr clip_norm scale crop_scale dim image_size"
_POSITIVE += " chunk_size max_images_per_class so_pairs_fraction"
_NOT_NEGATIVE = "so_weight weight_decay threshold_lr warmup_epochs checkpoint_minutes workers seed"
_LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "positive": (_POSITIVE, lambda value: value > 0),
    "0 or more": (f"{_NOT_NEGATIVE} validation_fraction", lambda value: value >= 0),
    "less than 1": ("validation_fraction", lambda value: value < 1),
    "at most 1": ("crop_scale so_pairs_fraction", lambda value: value <= 1),
    "0, for random batches, or at least 2": ("images_per_class", lambda m: m == 0 or m >= 2),
}

Config = TypeVar("Config", bound="BaseConfig")


@dataclass(frozen=True)
class BaseConfig:
    """Settings shared by fine-tuning and by training a head on frozen features."""

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
    """Weight decay of AdamW, on weights and proxies; not on norms and biases."""
    schedule: str = "cosine"
    """cosine (all rates fall to 0) or constant."""
    clip_norm: float = 10.0
    """Largest norm of the gradient."""
    validation_fraction: float = 0.2
    """Fraction of the training classes held out for validation."""
    seed: int = 0
    """Seed of everything random."""
    device: str | None = None
    """cpu, cuda, mps … None: a GPU where there is one."""

    def __post_init__(self) -> None:
        check_types(self)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, choices in _CHOICES.items():
            if fields.get(name) is not None:
                check_choice(name, fields[name], choices)
        for limit, (names, valid) in _LIMITS.items():
            for name in names.split():
                if fields.get(name) is not None and not valid(fields[name]):
                    raise SobookError(f"{name} is {fields[name]}: it must be {limit}.")

    @property
    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of `sobook.data.load` and `load_splits` for these data."""
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
    """Settings of one training run. The defaults are the quick run: a laptop, no network.

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

    @classmethod
    def recipe(cls, name: str, **changes: Any) -> "TrainConfig":
        """The settings of ``data/recipes.toml`` under a name, with some of them changed.

        >>> TrainConfig.recipe("cub200", seed=1).encoder
        'deit_small_distilled_patch16_224'

        Raises:
            SobookError: no recipe has that name.
        """
        check_choice("recipe", name, recipes())
        return cls.from_toml(recipes()[name]).replace(**changes)

    def differences(self, other: "TrainConfig") -> dict[str, tuple[Any, Any]]:
        """Fields that shape the result and differ: {name: (own value, other's value)}."""
        mine, theirs = self.to_dict(), other.to_dict()
        names = [name for name in mine if name not in NOT_IN_KEY]
        return {name: (mine[name], theirs[name]) for name in names if mine[name] != theirs[name]}

    def folder(self, key: str | None = None) -> Path:
        """The run folder: `run_dir`, or a name made from the settings and their `run_key`."""
        if self.run_dir is not None:
            return Path(self.run_dir).expanduser()
        loss = f"so{self.so_weight:g}" if self.so_weight else "pa"
        encoder = self.encoder.replace("/", "-").replace(":", "-")  # hf-hub:timm/…
        name = f"{self.dataset}-{encoder}-{loss}-seed{self.seed}-{(key or run_key(self))[:8]}"
        return files.data_root() / "runs" / name


def run_key(config: BaseConfig, sets: dict[str, ImageSet] | None = None) -> str:
    """A short hash of everything that shapes the result: the name of a run, or of its result.

    It covers all fields except those that say where the data lie and how a run computes. Defaults
    are included, so that a changed default does not bring back old results. For a folder of
    pictures, classes and digests of the pictures take the place of the folder's name.

    Args:
        config: the settings.
        sets: all parts of the data set, where they are loaded already; only read for "folder".
    """
    fields = {k: v for k, v in config.to_dict().items() if k not in NOT_IN_KEY}
    content = None
    if config.dataset == "folder" and Path(config.root or "").expanduser().is_dir():
        content = pictures_digest(sets or image_sets.load_splits("folder", **config.load_options))
    kind = type(config).__name__
    values = {"config": kind, "schema": SCHEMA, **fields, "content": content}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def pictures_digest(sets: dict[str, ImageSet]) -> str:
    """Digest of all parts of a data set: pictures, labels and class names, wherever they lie.

    The drawn birds are their options and the version of the drawings, which name their folder.
    """
    content: dict[str, Any] = {}
    for part, images in sets.items():
        drawn = images.paths[0].parent.parent.name if images.name == "aviary" else None
        identities = drawn or pictures.digests(images.paths)
        content[part] = [images.class_names, images.labels.tolist(), identities]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def recipes() -> dict[str, dict]:
    """``data/recipes.toml``: name → the settings in which it differs from the defaults."""
    tables = files.read_toml(files.shipped("recipes.toml"))
    shared = {name: tables.pop(name) for name in ("deit_small", "deit_tiny")}
    return {name: {**shared[own.pop("like")], **own} for name, own in tables.items()}
