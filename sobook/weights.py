"""Weights from wherever people have them, into a timm backbone: complete, or one clear sentence.

Start with `load_into`. A file is read as a tree of tensors (`read`), flattened to dotted names, so
that a wrapper (``{"model": …}``) and a prefix (``module.``) are the same thing. The place in that
tree that has the backbone's names is what is loaded. Code inside a file is never run.
"""

import collections
import contextlib
import itertools
import json
import os
import pickletools
import re
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sobook.errors import EncoderError, suggest

_SAVE = "torch.save(model.state_dict(), FILE)"
# What a folder of weights may hold, best first.
_NAMES = ("model.safetensors", "pytorch_model.bin", "checkpoint.safetensors")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_WORDS = ("pretrained", "micro")  # instead of a file, see `Encoder.create`
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")  # how a pickled module keeps its tensors
_HEADS = {"head", "head_dist", "fc", "classifier"}  # beside what timm's config says
# Extra parameters that mean another architecture. (A mask token is left from pre-training.)
_TELLING = re.compile(r"pos_embed|(cls|dist|reg|register|storage)_tokens?")


def load_into(backbone: nn.Module, name: str, weights: str | os.PathLike) -> None:
    """Load a file or folder of weights into a timm backbone without classifier.

    Wrappers and prefixes are removed, classifiers and other heads left out, half precision made
    float32, and position embeddings resampled as timm does it.

    Args:
        backbone: made by timm, with ``num_classes=0``.
        name: of the encoder, for messages.
        weights: the file or folder; ``FILE#teacher`` for one of several models in it.

    Raises:
        EncoderError: what the file holds, what differs, and what to do.
    """
    path, part = _locate(weights)
    tensors = read(path)
    if part and not any(key.startswith(f"{part}.") for key in tensors):
        raise EncoderError(f"{path} has no part {part!r}: it holds {_some(tensors)}.")
    if part:
        tensors = {key: value for key, value in tensors.items() if key.startswith(f"{part}.")}
    fitting: dict[str, dict[str, Tensor]] = {}
    problems = []
    for prefix in _places(tensors, backbone.state_dict()):
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        found, wrong = _adapt(found, backbone)
        if wrong:
            problems.append(wrong)
        elif not any(_same(found, other) for other in fitting.values()):
            fitting[prefix] = found
    if len(fitting) > 1 and "" not in fitting:  # what has no wrapper is the model itself
        names = [prefix.rstrip(".") for prefix in fitting]
        raise EncoderError(
            f"{path} holds {len(names)} models that fit {name} ({', '.join(names)}): name one, "
            f"e.g. weights='{path}#{names[0]}'."
        )
    if not fitting:
        remedy = "give their folder" if "-of-0" in path.name else "name the encoder they are of"
        raise EncoderError(
            f"{path} does not fit {name}: {problems[0]}. The file holds {_some(tensors)}: {remedy}."
        )
    found = fitting.get("") or next(iter(fitting.values()))
    backbone.load_state_dict(found, strict=False)  # counters of batches may be missing


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a file or folder of weights, on the CPU, with dotted names.

    Raises:
        EncoderError: it is something else, damaged, or holds no tensors.
    """
    tree: dict[str, Tensor] = {}
    for file in _files(path):
        try:
            tree |= _load(file)
        except EncoderError:
            raise
        except OSError as error:
            raise EncoderError(f"{file} cannot be read: {error.strerror}.") from None
        except Exception:  # of torch, safetensors, zipfile: they have no common parent
            raise EncoderError(
                f"{file} cannot be read as weights: it is damaged, cut short, or holds more than "
                f"tensors. Download it again, or save it with {_SAVE}."
            ) from None
    if not tree:
        raise EncoderError(f"{path} holds no tensors: save a model with {_SAVE}.")
    return tree


def _locate(weights: str | os.PathLike) -> tuple[Path, str]:
    """The path, and the part of the file after ``#``."""
    path = Path(weights).expanduser()
    if path.exists():
        return path, ""
    before, _, part = str(path).rpartition("#")
    if before and Path(before).exists():
        return Path(before), part.rstrip(".")
    remedy = f"give a file or folder of weights, {', '.join(map(repr, _WORDS))} or None"
    if "://" in str(weights):
        remedy = "download it, and give the file"
    raise EncoderError(
        f"there is no weights file {str(weights)!r}: {remedy}.{suggest(str(weights), _WORDS)}"
    )


def _files(path: Path) -> list[Path]:
    """The file itself; of a folder its weights, which may be in several shards."""
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        known = [path / name for name in (*_INDEXES, *_NAMES) if (path / name).is_file()]
        if not known and len(inside) != 1:
            names = [file.name for file in inside]
            what = _some(names, "files of weights") if names else "no file of weights"
            raise EncoderError(f"{path} holds {what}: name one file.")
        path = (known or inside)[0]
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        shards = sorted({path.with_name(file) for file in _json(path)["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise EncoderError(f"{path} is not an index of shards: download it again.") from None
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise EncoderError(f"{path.parent} lacks {_some(missing, 'shards')}: download them.")
    return shards


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _load(file: Path) -> dict[str, Tensor]:
    """Read one file, by what is in it rather than by its name."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise EncoderError(f"{file} is empty: download or save it again.")
    if head[8:9] == b"{":
        return safetensors.torch.load_file(file)
    if head[:4] == b"PK\x03\x04":
        _check_zip(file)
    elif head[:1] != b"\x80":  # not the format of torch before 1.6 either
        raise EncoderError(f"{file} {_foreign(file, head)}")
    return dict(_flatten(_unpickle(file)))


def _foreign(file: Path, head: bytes) -> str:
    text = head.decode("utf-8", errors="replace").strip()
    if text.isprintable() or "\n" in text and text.replace("\n", "").isprintable():
        return (
            f"holds text, not weights ({text[:40]!r}…): download the file itself (for a Git-LFS "
            "pointer with git lfs pull, for a web page from the link to the raw file)."
        )
    if head[:1] == b"\x08" or file.suffix == ".onnx":
        return f"is an ONNX graph: save the model it was made from, {_SAVE}."
    return f"is not a file of weights: give a .safetensors file, or {_SAVE}."


def _check_zip(file: Path) -> None:
    """Refuse a zip that torch did not write, that is damaged, or that unpacks to far more."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        ends = {name.rpartition("/")[2] for name in names}
        if any(name.endswith(".npy") for name in names):
            raise EncoderError(
                f"{file} holds NumPy arrays (weights of JAX?): give the PyTorch weights of the "
                "same model, or name it as timm does and leave weights at 'pretrained'."
            )
        if "constants.pkl" in ends:
            raise EncoderError(
                f"{file} is a TorchScript program: save its weights with "
                f"torch.save(torch.jit.load({file.name!r}).state_dict(), FILE)."
            )
        if "data.pkl" not in ends:
            raise EncoderError(f"{file} is an archive of {_some(names, 'files')}: unpack it first.")
        if sum(info.file_size for info in archive.infolist()) > 2 * file.stat().st_size:
            raise EncoderError(f"{file} is compressed, as torch.save never does: save it again.")
        if damaged := archive.testzip():
            raise EncoderError(f"{file} is damaged (in {damaged}): download or save it again.")


class _Unknown:
    """Stands for an object of a file that is not a tensor: none of its code is imported or run."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return collections.OrderedDict()  # takes what it holds: of a pickled module, its tensors


class _UnknownOfNumpy:
    """The same for numbers of numpy, whose state is a tuple: it is dropped."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickle(file: Path) -> Any:
    """`torch.load`, with a stand-in for the classes that it would refuse (argparse.Namespace …)."""
    stand_ins: list[Any] = []
    for module, name in _classes(file):
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        base = _UnknownOfNumpy if module.split(".")[0] == "numpy" else _Unknown
        stand_ins.append(type(name, (base,), {"__module__": module}))
    # Opened here, for torch would judge by the name.
    with torch.serialization.safe_globals(stand_ins), file.open("rb") as stream:
        return torch.load(stream, map_location="cpu", weights_only=True)


def _classes(file: Path) -> set[tuple[str, str]]:
    """Module and name of all that a pickle refers to. It is only listed, not loaded."""
    found = set()
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(file.open("rb"))
        pickles = 4  # torch before 1.6: two numbers, the system, the object
        if zipfile.is_zipfile(stream):
            archive = stack.enter_context(zipfile.ZipFile(stream))
            (inside,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            stream, pickles = stack.enter_context(archive.open(inside)), 1
        stream.seek(0)
        for _ in range(pickles):
            for operation, value, _ in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    module, _, name = str(value).partition(" ")
                    found.add((module, name))
    return found


def _flatten(tree: Any, name: str = "", seen: set[int] | None = None) -> Iterator:
    """(dotted name, tensor) of every tensor in nested dicts, lists and pickled modules."""
    seen = set() if seen is None else seen
    if isinstance(tree, Tensor):
        if tree.layout is torch.strided and tree.numel() * tree.element_size() <= _bytes(tree):
            yield name, tree.detach()
    elif isinstance(tree, (dict, list, tuple)) and id(tree) not in seen:
        seen.add(id(tree))
        inside = tree.items() if isinstance(tree, dict) else enumerate(tree)
        attributes = getattr(tree, "__dict__", {}).items()  # of an `_Unknown`
        for key, value in itertools.chain(inside, attributes):
            inner = name if key in _MODULE_PARTS else f"{name}.{key}" if name else str(key)
            yield from _flatten(value, inner, seen)


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _places(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The prefixes under which most of the backbone's names are found."""
    counts: collections.Counter = collections.Counter()
    for key in tensors:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    places = [place for place, count in counts.items() if 2 * count >= len(wanted)]
    # Else it may be in a format of old that timm knows how to rename.
    return places or [os.path.commonprefix(list(tensors)).rpartition(".")[0] + "."]


def _adapt(found: dict[str, Tensor], backbone: Any) -> tuple[dict[str, Tensor], str]:
    """The state for `backbone`, and in words what differs (nothing, where it fits)."""
    wanted, config = backbone.state_dict(), backbone.pretrained_cfg
    found = {key: v.float() if v.is_floating_point() else v for key, v in found.items()}
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    state = found
    if convert is not None:  # timm's: renames tensors of old, and resamples positions
        with contextlib.suppress(Exception):  # of foreign tensors; the differences say more
            state = convert(dict(found), backbone)
    patches = "patch_embed.proj.weight"
    if patches in found and found[patches].ndim == 4:  # timm would resample them as well
        state[patches] = found[patches]

    named = config.get("classifier") or ()
    heads = {head.split(".")[0] for head in ([named] if isinstance(named, str) else named)}
    heads |= _HEADS
    own = {child for child, _ in backbone.named_children()} - heads
    extra = [
        key
        for key, value in state.items()
        if key not in wanted
        and value.is_floating_point()
        and (key.split(".")[0] in own or _TELLING.fullmatch(key))
    ]
    state = {key: value for key, value in state.items() if key in wanted}
    counters = ("num_batches_tracked",)  # torch before 0.4.1 had none
    missing = [key for key in wanted if key not in state and not key.endswith(counters)]
    shapes = [
        f"{key} {_kind(value)}, not {_kind(wanted[key])}"
        for key, value in state.items()
        if _kind(value) != _kind(wanted[key])
    ]
    infinite = [key for key, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    differences = {
        f"of {len(wanted)} tensors are missing": missing,
        "have another shape or type": shapes,
        "do not belong to it": extra,
        "hold numbers that are not finite": infinite,
    }
    return state, "; ".join(f"{_some(keys, what)}" for what, keys in differences.items() if keys)


def _kind(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


def _some(names: Collection[str], what: str = "") -> str:
    """How many, and the first of them: ``3 are missing (a, b, c)``."""
    first = ", ".join(itertools.islice(names, 3))
    return f"{len(names)} {what or 'tensors'} ({first}{', …' if len(names) > 3 else ''})"
