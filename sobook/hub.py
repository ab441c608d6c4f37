"""What the name of an encoder means, and the files behind it: timm's list, a folder, the Hub.

`find` reads a name, `folder` and `pretrained` fetch. Without network they fail at once: the Hub's
own client would try for a minute.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import requests
import timm
from huggingface_hub import constants
from huggingface_hub.utils import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

from sobook.errors import EncoderError, first_line, suggest

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TIMEOUT = 5  # seconds to wait for the Hub's first answer
_ON_HUB = re.compile(r"(?i)hf[-_]hub:|https?://huggingface\.co/|(?=timm/)")


def find(name: str, *more: str) -> str:
    """A name in timm's list, ``hf-hub:owner/model`` or ``local-dir:folder``.

    Taken are also ``timm/NAME``, ``hf-hub:timm/NAME``, the address of a model on the Hub, a folder
    without prefix, capitals and spaces.

    Args:
        name: as somebody writes it.
        more: names that may be meant beside those of timm.

    Raises:
        EncoderError: unknown.
    """
    name = str(name).strip()
    plain = _ON_HUB.sub("", name, count=1).strip("/ ")
    listed = plain.removeprefix("timm/").lower()
    if timm.is_model(listed.split(".")[0]):
        with contextlib.suppress(RuntimeError):  # a tag that this timm does not know
            timm.models.get_pretrained_cfg(listed)
            return listed
    if _ON_HUB.match(name):
        return f"hf-hub:{plain}"
    path = Path(re.sub("^local[-_]dir:", "", name)).expanduser()
    if name and path.is_dir():
        return f"local-dir:{path.resolve()}"
    near = suggest(listed, [*more, *timm.list_models(), *timm.list_models(pretrained=True)])
    if path.is_file():
        near = f" (To use the weights in {path}, give it as weights.)"
    elif re.fullmatch(r"[\w.-]+/[\w.@-]+", name):
        near = f" (For one on the Hugging Face Hub write hf-hub:{name}.)"
    raise EncoderError(f"unknown encoder {name!r}: give the name of a timm model.{near}")


def folder(source: str, *, weights: bool) -> Path:
    """The folder of a ``local-dir:`` or ``hf-hub:`` model, fetched: its config, and its weights.

    Raises:
        EncoderError: the Hub does not have it, or cannot be reached.
    """
    scheme, _, place = source.partition(":")
    if scheme == "local-dir":
        return Path(place)
    if weights:
        _fetch(place, *_WEIGHTS)
    return Path(_fetch(place, "config.json")).parent


def config(path: Path) -> dict[str, Any]:
    """What ``config.json`` in the folder of a timm model says.

    Raises:
        EncoderError: there is none, or it is of another library.
    """
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        settings = found.get("pretrained_cfg", found)  # of old all was on one level
        known = timm.models.PretrainedCfg.__dataclass_fields__
        settings = {key: settings[key] for key in settings if key in known}
        if size := found.setdefault("model_args", {}).get("img_size"):
            settings["input_size"] = (3, *(size if isinstance(size, list) else [size, size]))
        found["pretrained_cfg"] = settings
        timm.is_model(found["architecture"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise EncoderError(
            f"{path} is not the folder of a timm model: it has no config.json that names an "
            "architecture. (For a file of weights give its model as encoder, the file as weights.)"
        ) from None
    return found


def pretrained(name: str) -> str | None:
    """The file of timm's own weights, downloaded once. None: timm fetches them another way.

    Raises:
        EncoderError: there are none, or they cannot be fetched.
    """
    config = timm.models.get_pretrained_cfg(name)
    if config is None or config.custom_load:
        return None
    if not config.has_weights:
        raise EncoderError(
            f"timm has no pretrained weights of {name}: give a file of weights, or None for "
            f"random ones.{suggest(name, timm.list_models(pretrained=True))}"
        )
    if not config.hf_hub_id:
        return None
    file = config.hf_hub_filename
    return _fetch(
        config.hf_hub_id, *((Path(file).stem + ".safetensors", file) if file else _WEIGHTS)
    )


def _fetch(repository: str, *files: str) -> str:
    """The first of `files` that a repository on the Hub has; from the cache if need be."""
    repo, _, revision = repository.partition("@")
    unreachable = _unreachable()
    try:
        for file in files:
            with contextlib.suppress(EntryNotFoundError):  # also: not in the cache
                return huggingface_hub.hf_hub_download(
                    repo, file, revision=revision or None, local_files_only=bool(unreachable)
                )
        reason = unreachable or f"it has no {' or '.join(files)}"
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{repo}"
        reason = f"accept its terms at {page}, then log in (hf auth login, or set HF_TOKEN)"
    except RepositoryNotFoundError:
        reason = "there is no such model, or it is private: log in (hf auth login, or HF_TOKEN)"
    except Exception as error:  # of the Hub's client, the network, the disk
        reason = first_line(error)
    raise EncoderError(
        f"{repository} could not be fetched from the Hugging Face Hub: {reason}. Else give a local "
        "file of weights (weights='deit.pth'), or use the bundled micro encoder "
        "(encoder='deit_micro_patch8_64', weights='micro')."
    )


def _unreachable() -> str:
    """Why the Hub cannot be asked, found in one attempt; empty where it can."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the cache does not have it"
    try:
        requests.head(constants.ENDPOINT, timeout=_TIMEOUT)
    except requests.RequestException as error:
        return f"this machine does not reach it ({type(error).__name__})"
    return ""
