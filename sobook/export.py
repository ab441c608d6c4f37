"""Trained encoders elsewhere: an ONNX file for any runtime, a folder for the Hugging Face Hub.

Neither needs the network; the packages for ONNX come with the extra ``sobook[export]``.
"""

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm.models
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sobook.data.loader import evaluation_short_side
from sobook.encoder import MICRO, Encoder
from sobook.errors import SobookError
from sobook.files import data_root, replacing, write_text
from sobook.training.config import TrainConfig
from sobook.training.run import Run

_TOLERANCE = 1e-4  # per coordinate of a unit vector, between torch and onnxruntime


class _FromPixels(nn.Module):
    """The encoder for images in 0..1, so that users of the file need no mean and std."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder((images - self.encoder.mean) / self.encoder.std)


def to_onnx(run: Run, file: str | Path) -> Path:
    """Write the encoder of a finished run as one ONNX file, and compare it with torch.

    The input ``images`` is (B, 3, H, W) float32, RGB in 0..1, with H = W = the encoder's image
    size; the output ``embeddings`` is (B, D), rows of unit length. B is free.

    Raises:
        SobookError: the extra is not installed, or onnxruntime and torch disagree (then no file is
            left).
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch uses it)
    except ImportError as error:
        raise SobookError(f"ONNX needs `pip install 'sobook[export]'` ({error}).") from None
    file = Path(file).expanduser()
    model = _FromPixels(run.encoder()).eval()
    side = model.encoder.image_size
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with replacing(file) as partial, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about torch's own internals
        torch.onnx.export(
            model,
            (images,),
            str(partial),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        (embeddings,) = session.run(None, {"images": images[:1].numpy()})  # another B
        worst = np.abs(embeddings - model(images[:1]).numpy()).max()
        if not worst <= _TOLERANCE:
            raise SobookError(
                f"the ONNX file differs from torch by {worst:.1e} in a coordinate (allowed: "
                f"{_TOLERANCE:.0e}): try other versions of torch and onnxscript."
            )
    return file


class HubEncoder(Encoder, PyTorchModelHubMixin):
    """An encoder for the Hub: `save_pretrained`, `push_to_hub` and `from_pretrained`.

    ``config.json`` and ``model.safetensors`` are timm's own format, so the backbone alone opens
    with ``timm.create_model("hf-hub:you/name")``. ``head.safetensors`` and the entry "sobook" of
    ``config.json`` hold the rest.

    >>> HubEncoder.from_run(Run.load("data/runs/my-run")).push_to_hub("you/birds")  # doctest: +SKIP
    >>> HubEncoder.from_pretrained("you/birds")  # or a folder  # doctest: +SKIP
    """

    card = ""
    """The model card: settings and results of the run."""

    @classmethod
    def from_run(cls, run: Run) -> "HubEncoder":
        """The encoder of a finished run."""
        trained = run.encoder()
        encoder = cls.create(weights=None, **trained.settings())
        encoder.load_state_dict(trained.state_dict())
        encoder.card = _model_card(run, trained)
        return encoder.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        settings = self.settings()
        if ":" in self.name:  # the backbone of another folder or the Hub is in this folder now
            settings["name"] = "local-dir:."
        side, pretrained = self.image_size, self.backbone.pretrained_cfg
        # timm's transform then is that of sobook; it rounds side / crop down, so crop is, too.
        crop = math.floor(1e6 * side / evaluation_short_side(side)) / 1e6
        pretrained.update(crop_pct=crop, crop_mode="center", interpolation="bicubic")
        pretrained.update(input_size=(3, side, side), test_crop_pct=None, test_input_size=None)
        model_args = {"img_size": side} if pretrained.get("fixed_input_size") else {}
        if self.name.startswith(MICRO):  # to timm, a small one of its own DeiTs
            pretrained["architecture"] = "deit_tiny_distilled_patch16_224"
            model_args |= {"patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4}
        timm.models.save_for_hf(
            self.backbone,
            save_directory,
            model_config={"sobook": {"encoder": settings}},
            model_args=model_args,
            safe_serialization=True,
        )
        save_file(self.head.state_dict(), save_directory / "head.safetensors")
        if self.card:  # else huggingface_hub writes one
            write_text(save_directory / "README.md", self.card)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict | None = None, **download: Any):
        if "sobook" not in (config or {}):
            raise SobookError(f"{model_id} was not written by sobook's `to_hub` or `push_to_hub`.")
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, **download))
        encoder = cls.create(str(folder), dim=config["sobook"]["encoder"]["dim"])
        encoder.head.load_state_dict(load_file(folder / "head.safetensors"))
        if (card := folder / "README.md").is_file():
            encoder.card = card.read_text(encoding="utf-8")
        return encoder.eval()


def to_hub(run: Run, folder: str | Path) -> Path:
    """Write a finished run into a new folder in the layout of the Hub; nothing is uploaded.

    Raises:
        SobookError: the folder exists, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists():
        raise SobookError(f"{folder} exists: name a new folder.")
    with replacing(folder) as partial:
        HubEncoder.from_run(run).save_pretrained(partial)
    return folder


def _model_card(run: Run, encoder: Encoder) -> str:
    """Settings and results, without folders of this machine."""
    config, retrieval = run.config, run.retrieval
    names = {"encoder": Path(config.encoder).name}
    names["weights"] = config.weights and Path(config.weights).name
    config = config.replace(**names)
    changed = config.differences(TrainConfig())
    settings = ", ".join(f"{name} {value!r}" for name, (value, _) in changed.items())
    interval = retrieval["recall_at_1_interval"]
    ends = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "none, of so few classes"
    recalls = ", ".join(f"Recall@{k} {value:.3f}" for k, value in retrieval["recall"].items())
    home = f"{data_root(config.root)}{os.sep}"
    notes = "".join(f"- {note}\n" for note in retrieval["notes"]).replace(home, "")
    feature = f"token {encoder.token!r} of `forward_features`" if encoder.token else "output"
    return f"""\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [image-retrieval, metric-learning, sobook]
---

# {config.encoder}, trained for retrieval on {config.dataset}

Embeds an image as a unit vector of {encoder.dim} numbers; the cosine of two embeddings says how
similar the images are. Trained with sobook: Proxy Anchor and soft orthogonality of weight
{config.so_weight:g}, {config.epochs} epochs, seed {config.seed}, on {run.state["train_images"]:,}
images of {len(run.state["class_names"]):,} classes. Settings other than the defaults: {settings}.

```python
from sobook.export import HubEncoder
encoder = HubEncoder.from_pretrained("you/name")  # images (B, 3, H, W) uint8 → (B, {encoder.dim})
```

Images: short side to {evaluation_short_side(encoder.image_size)}, center crop of
{encoder.image_size} pixels. The backbone alone opens with timm; its feature is the {feature}.

On {retrieval["queries"]:,} images of test classes never trained on: {recalls}; 95 % interval of
Recall@1 over classes: {ends}. MAP@R {retrieval["map_at_r"]:.3f}.
The epoch was chosen by: {config.selection}. Expect little on classes of another kind. The license
of the training images may cover what is made from them.
{notes}"""
