"""Trained encoders elsewhere: an ONNX file for any runtime, a folder for the Hugging Face Hub.

Neither needs the network; the packages for ONNX come with the extra ``sobook[export]``.
"""

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
from sobook.encoder import Encoder
from sobook.errors import SobookError
from sobook.files import data_root, replacing, write_text
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
        SobookError: onnxruntime and torch disagree; no file is left then.
    """
    import onnxruntime

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

    facts: dict[str, Any] | None = None
    """Settings and measurements of the run, shown on the model card."""

    @classmethod
    def from_run(cls, run: Run) -> "HubEncoder":
        """The encoder of a finished run."""
        trained = run.encoder()
        encoder = cls.create(weights=None, **trained.settings())
        encoder.load_state_dict(trained.state_dict())
        encoder.facts = _facts(run)
        return encoder.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        settings = self.settings()
        if ":" in self.name:  # the backbone of another folder or the Hub is in this folder now
            settings["name"] = "local-dir:."
        has_fixed_size = self.backbone.pretrained_cfg.get("fixed_input_size")
        timm.models.save_for_hf(
            self.backbone,
            save_directory,
            model_config={"sobook": {"encoder": settings, "run": self.facts}},
            model_args={"img_size": self.image_size} if has_fixed_size else None,
            safe_serialization=True,
        )
        save_file(self.head.state_dict(), save_directory / "head.safetensors")
        if self.facts:
            write_text(save_directory / "README.md", _model_card(self, self.facts))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict | None = None, **download: Any):
        if "sobook" not in (config or {}):
            raise SobookError(f"{model_id} was not written by sobook's `to_hub` or `push_to_hub`.")
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, **download))
        settings = config["sobook"]["encoder"]
        settings["name"] = settings["name"].replace("local-dir:.", f"local-dir:{folder}")
        encoder = cls.create(weights=None, **settings)
        encoder.backbone.load_state_dict(load_file(folder / "model.safetensors"))
        encoder.head.load_state_dict(load_file(folder / "head.safetensors"))
        encoder.facts = config["sobook"]["run"]
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


def _facts(run: Run) -> dict[str, Any]:
    """Facts on a run for the model card, without folders of this machine."""
    config, retrieval = run.config, run.retrieval
    weights = config.weights and Path(config.weights).name
    config = config.replace(
        root=None, run_dir=None, encoder=Path(config.encoder).name, weights=weights
    )
    home = f"{data_root(run.config.root)}{os.sep}"
    return {
        "config": config.to_dict(),
        "retrieval": retrieval | {"notes": [note.replace(home, "") for note in retrieval["notes"]]},
        "train_images": run.state["train_images"],
        "train_classes": len(run.state["class_names"]),
    }


def _model_card(encoder: HubEncoder, facts: dict[str, Any]) -> str:
    config, retrieval = facts["config"], facts["retrieval"]
    interval = retrieval["recall_at_1_interval"]
    ends = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "none, of so few classes"
    recalls = ", ".join(f"Recall@{k} {value:.3f}" for k, value in retrieval["recall"].items())
    notes = "".join(f"- {note}\n" for note in retrieval["notes"])
    return f"""\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [image-retrieval, metric-learning, sobook]
---

# {config["encoder"]}, trained for retrieval on {config["dataset"]}

Embeds an image as a unit vector of {encoder.dim} numbers; the cosine of two embeddings says how
similar the images are. Trained with sobook: Proxy Anchor and soft orthogonality of weight
{config["so_weight"]:g}, {config["epochs"]} epochs, seed {config["seed"]}, on
{facts["train_images"]:,} images of {facts["train_classes"]:,} classes.

```python
from sobook.export import HubEncoder
encoder = HubEncoder.from_pretrained("you/name")  # images (B, 3, H, W) uint8 → (B, {encoder.dim})
```

The backbone alone opens with timm. Images: short side to
{evaluation_short_side(encoder.image_size)}, center crop of {encoder.image_size} pixels.

On {retrieval["queries"]:,} images of test classes never trained on: {recalls}; 95 % interval of
Recall@1 over classes: {ends}. MAP@R {retrieval["map_at_r"]:.3f}.
The epoch was chosen by: {config["selection"]}. Expect little on classes of another kind. The
license of the training images may cover what is made from them.
{notes}"""
