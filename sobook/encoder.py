"""The encoder: a timm backbone and a small head, from images to unit-length embeddings.

Start with `Encoder.forward`. It knows tensors only; image sets are the business of `embedding`.
Notation: B batch, T tokens, F features of the backbone, D embedding dimension.
"""

import contextlib
import hashlib
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from timm.models._hub import load_state_dict_from_path
from torch import Tensor, nn

from sobook import files
from sobook.errors import EncoderError, SobookError, check_choice, first_line, plain, suggest

MICRO = "deit_micro_patch8_64"  # sobook's own, see `sobook.course.aviary.micro_deit`
_TOKENS = {"cls": slice(0, 1), "dist": slice(1, 2), "mean": slice(0, 2)}  # their mean is taken


class Encoder(nn.Module):
    """Backbone and head. Make one with `Encoder.create`.

    Attributes:
        backbone: a timm model without classifier.
        head: LayerNorm without parameters and a Linear layer, or the identity.
        name, image_size, token: as given to `create`.
        num_features: F. dim: D (equal to F without a head).
        mean, std: (3,) statistics the backbone was trained with, for images in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Any, name: str, dim: int | None, image_size: int, token: str | None
    ):
        super().__init__()
        self.backbone, self.name, self.image_size, self.token = backbone, name, image_size, token
        self.num_features = backbone.head_hidden_size  # after pooling; num_features is before
        self.dim = dim or self.num_features
        self.head = make_head(self.num_features, dim)
        config = timm.data.resolve_model_data_config(backbone)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(3, 1, 1), persistent=False)

    @classmethod
    def create(
        cls,
        name: str = "deit_small_distilled_patch16_224",
        *,
        dim: int | None = None,
        weights: str | os.PathLike | Mapping[str, Tensor] | None = "pretrained",
        image_size: int | None = None,
        token: str | None = None,
    ) -> "Encoder":
        """Make an encoder.

        Args:
            name: any timm model as timm names it ("resnet18.a1_in1k", "hf-hub:owner/model"), the
                folder of one (also what `sobook export --hub` wrote), or "deit_micro_patch8_64",
                sobook's own for laptops.
            dim: D, the embedding dimension of the head. None: no head, the embedding is the
                backbone's feature, normalized.
            weights: "pretrained" (timm's, downloaded once; those in the folder), "micro" (shipped,
                for the micro encoder), a file or folder of weights of the backbone as timm reads
                it, a dict of tensors, or None for random weights.
            image_size: side of the input in pixels; None is the backbone's own. Position
                embeddings are resampled where it differs.
            token: what of a vision transformer becomes the feature: "cls", "dist" (distilled DeiT
                only) or "mean" of the two. None is timm's way: the class token, and for distilled
                DeiT the mean, in training and evaluation alike. (Hyp-ViT and HIER trained the
                class token alone and evaluated the mean, by an old default of timm.)

        Raises:
            EncoderError: unknown name, weights missing or of another architecture.
            SobookError: unknown token.
        """
        dim, image_size = plain("dim", dim, int | None), plain("image_size", image_size, int | None)
        if not all(value is None or value > 0 for value in (dim, image_size)):
            raise EncoderError(f"dim is {dim}, image_size {image_size}: give at least 1, or None.")
        check_choice("token", token or "mean", _TOKENS)
        try:
            name, config = _locate(str(name).strip())
            backbone = _make_backbone(name, config, weights, image_size)
        except EncoderError:
            raise
        except Exception as error:  # those of timm, torch and the Hub share no base class
            raise EncoderError(
                f"{name} cannot be made ({first_line(error)}). Without a network use {MICRO!r}."
            ) from None
        if exported := config.get("sobook", {}).get("encoder"):  # by sobook
            name = name if ":" in exported["name"] else exported["name"]
            image_size, token = image_size or exported["image_size"], token or exported["token"]
        tokens = ("cls_token", "dist_token")[: _TOKENS[token].stop] if token else ()
        if any(getattr(backbone, attribute, None) is None for attribute in tokens):
            raise EncoderError(f"{name} has no {token!r} token: leave token out (None).")
        embedder = getattr(backbone, "patch_embed", None)
        default_size = timm.data.resolve_model_data_config(backbone)["input_size"][1:]
        side = image_size or (getattr(embedder, "img_size", None) or default_size)[0]
        patches: Any = getattr(embedder, "proj", None)
        is_grid = isinstance(patches, nn.Conv2d) and patches.kernel_size == patches.stride
        if is_grid and side % (patch := patches.stride[0]):  # timm would cut off the rest
            raise EncoderError(f"{name} takes multiples of its patch size {patch}, not {side}.")
        return cls(backbone, name, dim, side, token)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W): uint8 (normalized here with the backbone's own mean and
                std), or floating point, normalized already.

        Returns:
            (B, D) embeddings of unit length, float32 even under autocast.
        """
        return F.normalize(self.head(self.features(images)).float(), dim=1)

    def features(self, images: Tensor) -> Tensor:
        """(B, F): the backbone alone, not normalized. Images as for `forward`."""
        images = self.normalize(images)
        if self.token is None:
            return self.backbone(images)
        tokens = self.backbone.forward_features(images)  # (B, T, F)
        return tokens[:, _TOKENS[self.token]].mean(1)

    def attention(self, images: Tensor) -> Tensor:
        """Attention of the class token in the last block: (B, heads, T), summing to 1 over T.

        The first `backbone.num_prefix_tokens` of the T tokens are not patches (class,
        distillation); the others are the patches, row by row.

        Raises:
            EncoderError: the backbone has no transformer blocks.
        """
        layer: Any = getattr(getattr(self.backbone, "blocks", [None])[-1], "attn", None)
        if layer is None:
            raise EncoderError(f"{self.name} has no attention to show: choose a DeiT or a ViT.")
        seen = []
        with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            self.backbone(self.normalize(images))
        tokens = seen[0]  # (B, T, F), after the block's LayerNorm
        shape = (*tokens.shape[:2], 3, layer.num_heads, -1)
        query, key, _ = layer.qkv(tokens).reshape(shape).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        query, key = layer.q_norm(query), layer.k_norm(key)
        scores = query[:, :, :1] @ key.transpose(-2, -1) * layer.scale  # (B, heads, 1, T)
        return scores.softmax(-1)[:, :, 0]

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 to floating point with the backbone's mean and std; floats pass unchanged."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise SobookError(f"images have shape {tuple(images.shape)}, expected (B, 3, H, W).")
        if images.dtype != torch.uint8:
            return images
        return (images.to(self.mean.device).float() / 255 - self.mean) / self.std

    def settings(self) -> dict:
        """Arguments of `create` that build this encoder again (with weights=None)."""
        dim = None if isinstance(self.head, nn.Identity) else self.dim
        return {"name": self.name, "dim": dim, "image_size": self.image_size, "token": self.token}

    def fingerprint(self) -> str:
        """Short hash of what embeddings depend on: settings, layers, weights, mean and std."""
        text = f"{self.settings()} {self.backbone} {self.head} {weights_digest(self)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        values = tensor.detach().cpu().reshape(-1)  # also single numbers, e.g. of a batch norm
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def make_head(features: int, dim: int | None, *, bias: bool = True) -> nn.Module:
    """LayerNorm without parameters, then Linear with orthogonal start: HIER's head for DeiT."""
    if dim is None:
        return nn.Identity()
    linear = nn.Linear(features, dim, bias=bias)
    nn.init.orthogonal_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(features, elementwise_affine=False), linear)


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """Name as timm takes it, and ``config.json`` of its folder or Hub repository (else empty)."""
    scheme, _, place = name.partition(":")
    if timm.is_model(name) or name.startswith(MICRO):
        return name, {}
    if scheme == "hf-hub":
        repository, _, revision = place.partition("@")
        file = Path(hf_hub_download(repository, "config.json", revision=revision or None))
    elif (folder := Path(place or name).expanduser()).is_dir():
        name, file = f"local-dir:{folder.resolve()}", folder / "config.json"
    else:
        near = suggest(name, [MICRO, *timm.list_models(), *timm.list_models(pretrained=True)])
        raise EncoderError(
            f"unknown encoder {name!r}: give a timm model, hf-hub:OWNER/MODEL or a folder.{near}"
        )
    return name, json.loads(file.read_text(encoding="utf-8"))


def _make_backbone(name: str, config: dict, weights: Any, image_size: int | None) -> Any:
    """timm model without classifier, with its weights."""
    architecture = config["architecture"] if config else name
    if architecture.startswith(MICRO):  # by name: the encoder can be used without the aviary
        importlib.import_module("sobook.course.aviary.micro_deit")
    scheme, _, place = name.partition(":")
    if name.startswith(MICRO) and weights in ("micro", "pretrained"):
        weights = files.shipped(f"{MICRO}.safetensors")
    elif config and weights == "pretrained":
        weights = place if scheme == "local-dir" else timm.models.load_state_dict_from_hf(place)
    known = timm.models.get_pretrained_cfg(architecture)
    size = image_size if known is None or known.fixed_input_size else None  # others take any
    backbone = timm.create_model(name, weights == "pretrained", num_classes=0, img_size=size)
    if weights is not None and weights != "pretrained":
        is_path = isinstance(weights, str | os.PathLike)
        _load(backbone, name, _read_weights(Path(weights).expanduser()) if is_path else weights)
    return backbone


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """State dict in a file or folder, as timm reads it: wrappers are removed, no code is run."""
    read = load_state_dict_from_path if path.is_dir() else timm.models.load_state_dict
    try:
        return read(str(path))
    except Exception as error:  # those of torch, safetensors and pickle share no base class
        raise EncoderError(
            f"{path} cannot be read as weights ({first_line(error)}): give what torch.save("
            f"model.state_dict(), FILE) wrote, 'pretrained', None or, for {MICRO}, 'micro'."
        ) from None


def _load(backbone: Any, name: str, given: Mapping[str, Tensor]) -> None:
    """Load a state dict, but leave no tensor random and none unused except classifiers."""
    tensors = {k: v for k, v in given.items() if isinstance(v, Tensor)}
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    patches = {k: v for k, v in state.items() if k == "patch_embed.proj.weight" and v.ndim == 4}
    wanted = backbone.state_dict()
    with contextlib.suppress(Exception):  # there is none, or the tensors are another model's
        convert = sys.modules[type(backbone).__module__].checkpoint_filter_fn  # type: ignore
        state = convert(state, backbone) | patches  # positions are resampled, patches are not
    own = {key.split(".")[0] for key in wanted} - {"head", "head_dist", "fc", "classifier"}
    own |= {"pos_embed", "cls_token", "dist_token", "reg_token", "register_tokens"}
    differences = {
        "missing": [k for k in wanted if k not in state and "num_batches_tracked" not in k],
        "misshapen": [k for k in wanted if k in state and state[k].shape != wanted[k].shape],
        "unknown": [k for k in state if k not in wanted and k.split(".")[0] in own],
    }
    if problems := [f"{len(ks)} {what}: {ks[0]} …" for what, ks in differences.items() if ks]:
        raise EncoderError(
            f"the weights ({', '.join(list(given)[:3])} …) do not fit {name} "
            f"({'; '.join(problems)}): name their encoder, or save its own state_dict()."
        )
    backbone.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)
