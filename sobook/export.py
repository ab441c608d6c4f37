"""Take a trained encoder elsewhere: ONNX for any runtime, a folder for the Hugging Face Hub.

Both work without network; what ONNX needs beyond sobook is in the extra ``sobook[export]``.
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
from sobook.errors import SobookError, first_line
from sobook.files import data_root, replacing, write_text
from sobook.training.run import Run

_TOLERANCE = 1e-4  # of a coordinate of a unit vector, between torch and onnxruntime


class _FromPixels(nn.Module):
    """The encoder on images in 0..1, so that nobody who runs it needs mean and std."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder((images - self.encoder.mean) / self.encoder.std)


def to_onnx(run: Run, file: str | Path) -> Path:
    """Write the encoder of a finished run as one ONNX file, and compare it with torch.

    Its input ``images`` is (B, 3, H, W) float32, RGB in 0..1, H = W the encoder's image size; its
    output ``embeddings`` is (B, D), of unit length. B is free. The comparison runs in onnxruntime.

    Raises:
        SobookError: packages are missing or too old, or the two disagree; then no file is left.
    """
    try:
        import onnxruntime
        import onnxscript  # torch needs it
    except ImportError as error:
        raise SobookError(f"{error.name} is missing: pip install 'sobook[export]'.") from None
    file = Path(file).expanduser()
    model = _FromPixels(run.encoder()).eval()
    side = model.encoder.image_size
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with replacing(file) as partial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals
            try:
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
            except Exception as error:  # of exporters, which differ: they have no common parent
                raise SobookError(
                    f"torch {torch.__version__} cannot write ONNX with onnxscript "
                    f"{onnxscript.__version__}: {first_line(error)} Newer ones: "
                    "pip install --upgrade 'sobook[export]'."
                ) from None
        session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            expected = model(images[:1]).numpy()
        (found,) = session.run(None, {"images": images[:1].numpy()})
        if not (worst := np.abs(found - expected).max()) <= _TOLERANCE:
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
    """Settings and measurements of the run behind it, which the model card shows."""

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
        if ":" in self.name:  # a model of another folder or the Hub: from now on of this folder
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
        if self.facts:  # else the Hub's own card
            write_text(save_directory / "README.md", _model_card(self, self.facts))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, config: dict | None = None, **download: Any):
        if "sobook" not in (config or {}):
            raise SobookError(f"{model_id} is not what `to_hub` or `push_to_hub` of sobook wrote.")
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, **download))
        dim = config["sobook"]["encoder"]["dim"]
        encoder = cls.create(f"local-dir:{folder}", weights=None, dim=dim)
        encoder.backbone.load_state_dict(load_file(folder / "model.safetensors"))
        encoder.head.load_state_dict(load_file(folder / "head.safetensors"))
        encoder.facts = config["sobook"]["run"]
        return encoder.eval()


def to_hub(run: Run, folder: str | Path) -> Path:
    """Write a finished run into a new folder in the layout of the Hub; nothing is uploaded.

    Raises:
        SobookError: the folder is not empty, or cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SobookError(f"{folder} is not an empty folder: name a new one.")
    with replacing(folder) as partial:
        HubEncoder.from_run(run).save_pretrained(partial)
    return folder


def _facts(run: Run) -> dict[str, Any]:
    """What the card says of a run, without the folders of this machine."""
    weights = run.config.weights and Path(run.config.weights).name
    encoder = Path(run.state["encoder"]["name"]).name
    root, retrieval = data_root(run.config.root), run.retrieval
    for folder in (root, root.resolve()):
        retrieval["notes"] = [note.replace(f"{folder}{os.sep}", "") for note in retrieval["notes"]]
    return {
        "config": run.config.replace(
            root=None, run_dir=None, encoder=encoder, weights=weights
        ).to_dict(),
        "retrieval": retrieval,
        "train_images": run.state["train_images"],
        "train_classes": len(run.state["class_names"]),
    }


def _model_card(encoder: HubEncoder, facts: dict[str, Any]) -> str:
    config, retrieval = facts["config"], facts["retrieval"]
    low, high = retrieval["recall_at_1_interval"]
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

On {retrieval["queries"]:,} images of test classes never trained on: {recalls}; Recall@1 has a 95 %
bootstrap interval over classes of [{low:.3f}, {high:.3f}]. MAP@R {retrieval["map_at_r"]:.3f}.
The epoch was chosen by: {config["selection"]}. Expect little on classes of another kind. The
license of the training images may cover what is made from them.
{notes}"""
