"""The encoder: a timm backbone and a small head, from images to unit-length embeddings.

Start with `Encoder.forward`. It knows tensors only; image sets are the business of `embedding`.
Notation: B batch, T tokens, F features of the backbone, D embedding dimension.
"""

import copy
import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sobook import files, hub
from sobook.errors import EncoderError, SobookError, check_choice, first_line, plain
from sobook.weights import load_into

MICRO = "deit_micro_patch8_64"  # sobook's own, see `sobook.course.aviary.micro`
# The tokens whose mean is the feature.
_TOKENS = {"cls": slice(0, 1), "dist": slice(1, 2), "mean": slice(0, 2)}
_QUICK = 640  # pixels of a side that any model embeds in a second or two
_MOST_DIMENSIONS = 65_536
_LARGEST = 4096  # pixels of a side; above, one image fills the memory


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
        self.num_features = _feature_size(backbone, name, image_size)
        self.has_head = dim is not None
        self.dim = dim or self.num_features
        self.head = make_head(self.num_features, dim)
        data = timm.data.resolve_model_data_config(backbone)
        for statistic in ("mean", "std"):
            tensor = torch.tensor(data[statistic]).view(3, 1, 1)
            self.register_buffer(statistic, tensor, persistent=False)

    @classmethod
    def create(
        cls,
        name: str = "deit_small_distilled_patch16_224",
        *,
        dim: int | None = None,
        weights: str | os.PathLike | None = "pretrained",
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
                for the micro encoder), a file or folder of weights of the backbone, or None for
                random weights. Where a file holds several models, name one: "dino.pth#teacher".
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
        dim = plain("dim", dim, int | None)
        image_size = plain("image_size", image_size, int | None)
        if dim is not None and not 1 <= dim <= _MOST_DIMENSIONS:
            raise EncoderError(
                f"dim is {dim}: give 1 to {_MOST_DIMENSIONS:,} dimensions, or None for no head."
            )
        if image_size is not None and not 1 <= image_size <= _LARGEST:
            raise EncoderError(f"image_size is {image_size}: give 1 to {_LARGEST} pixels.")
        if token is not None:
            check_choice("token", token, _TOKENS)
        _register_micro(str(name))
        name, folder = hub.find(name, MICRO), None
        if ":" in name:
            folder = hub.folder(name, weights=weights == "pretrained")
            config = hub.config(folder)
            _register_micro(config["architecture"])
            weights = folder if weights == "pretrained" else weights
            if about := config.get("sobook"):  # our own: a name in timm's list, and the settings
                settings = about["encoder"]
                image_size, token = image_size or settings["image_size"], token or settings["token"]
                if ":" not in settings["name"]:
                    name, folder = settings["name"], None
        backbone = _make_backbone(name, folder, weights, image_size)
        tokens = ("cls_token", "dist_token")[: _TOKENS[token].stop] if token else ()
        if any(getattr(backbone, one, None) is None for one in tokens):
            raise EncoderError(f"{name} has no {token!r} token: leave token out (None).")
        side = image_size or timm.data.resolve_model_data_config(backbone)["input_size"][-1]
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
        """What the class token looks at in the last block: (B, heads, T), summing to 1 over T.

        The first `backbone.num_prefix_tokens` of the T tokens are not patches (class,
        distillation); the others are the patches, row by row.

        Raises:
            EncoderError: the backbone has no transformer blocks.
        """
        if not hasattr(self.backbone, "blocks"):
            raise EncoderError(f"{self.name} has no attention to show: choose a DeiT or a ViT.")
        layer = self.backbone.blocks[-1].attn
        seen = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.backbone(self.normalize(images))
        finally:
            hook.remove()
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
        """What `create` needs to build this encoder again (with weights=None)."""
        return {
            "name": self.name,
            "dim": self.dim if self.has_head else None,
            "image_size": self.image_size,
            "token": self.token,
        }

    def fingerprint(self) -> str:
        """Short hash of settings and weights: the key of cached embeddings."""
        digest = hashlib.sha256(repr(self.settings()).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            values = tensor.detach().cpu().reshape(-1)  # also single numbers, e.g. of a batch norm
            digest.update(values.view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def make_head(features: int, dim: int | None) -> nn.Module:
    """LayerNorm without parameters, then Linear with orthogonal start: HIER's head for DeiT."""
    if dim is None:
        return nn.Identity()
    linear = nn.Linear(features, dim)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(features, elementwise_affine=False), linear)


def _register_micro(name: str) -> None:
    """Register the micro encoder with timm, where it is named.

    Imported by name, so that the encoder can be read, and used, without the aviary.
    """
    if MICRO in name.lower():
        importlib.import_module("sobook.course.aviary.micro")


def _make_backbone(
    name: str, folder: Path | None, weights: str | os.PathLike | None, image_size: int | None
) -> Any:
    is_micro = name.split(".")[0] == MICRO
    if weights == "micro" and not is_micro:
        raise EncoderError(f"weights='micro' belong to {MICRO!r}, not to {name!r}.")
    if is_micro and weights in ("micro", "pretrained"):
        weights = files.shipped(f"{MICRO}.safetensors")
    options: dict[str, Any] = {}
    if folder is None:
        source, known = name, timm.models.get_pretrained_cfg(name)
        has_fixed_size = known is None or known.fixed_input_size
    else:
        config = hub.config(folder)
        source, options = config["architecture"], dict(config["model_args"])
        options["pretrained_cfg"] = config["pretrained_cfg"]
        has_fixed_size = options["pretrained_cfg"].get("fixed_input_size") or "img_size" in options
    if image_size is not None and has_fixed_size:  # others take any size
        options["img_size"] = image_size
    if weights == "pretrained" and (file := hub.pretrained(name)):
        options["pretrained_cfg_overlay"] = {"file": file}
    try:
        options["num_classes"] = 0
        backbone = timm.create_model(source, weights == "pretrained", **options)
    except Exception as error:  # of timm, network, pickle: they have no common parent
        size = "" if image_size is None else f" for images of {image_size} pixels"
        raise EncoderError(f"{name} cannot be made{size}: {first_line(error)}") from None
    if weights is not None and weights != "pretrained":
        load_into(backbone, name, weights)
    return backbone


def _feature_size(backbone: Any, name: str, image_size: int) -> int:
    """F, found by trying: not every model of timm tells it, nor which sizes of image it takes."""
    patches = getattr(getattr(backbone, "patch_embed", None), "proj", None)
    side = 1  # of a patch; those that overlap take any size
    if isinstance(patches, nn.Conv2d) and patches.kernel_size == patches.stride:
        side = patches.stride[0]
    if image_size % side:  # timm would silently cut off what fills no patch
        raise EncoderError(
            f"{name} cannot be made for images of {image_size} pixels: choose a multiple of its "
            f"patch size, {side}."
        )
    # Large images take minutes; a copy without memory then tells the same, for most models.
    device = "cpu" if image_size <= _QUICK else "meta"
    model = backbone if device == "cpu" else copy.deepcopy(backbone).to(device)
    try:
        with torch.no_grad():
            images = torch.zeros(1, 3, image_size, image_size, device=device)
            features = model.eval()(images)
    except Exception as error:  # whatever its layers say
        own = timm.data.resolve_model_data_config(backbone)["input_size"][-1]
        why = f"its own is {own}" if image_size != own else first_line(error)
        raise EncoderError(
            f"{name} does not take color images of {image_size} pixels: {why}."
        ) from None
    backbone.train()
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise EncoderError(f"{name} gives no single feature of an image: choose another encoder.")
    return features.shape[1]
