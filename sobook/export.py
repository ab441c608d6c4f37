"""A trained encoder, taken elsewhere: ONNX for any runtime, a folder for the Hugging Face Hub.

Both work without network; what they need beyond sobook is in the extra ``sobook[export]``.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import timm.models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sobook.data.pixels import evaluation_short_side
from sobook.encoder import Encoder
from sobook.errors import ExportError
from sobook.files import replacing, write_json
from sobook.training.run import Run

_TOLERANCE = 1e-4  # of a coordinate of a unit vector, between torch and onnxruntime


class _FromPixels(nn.Module):
    """The encoder on images in 0..1, so that who runs it need not know mean and std."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in 0..1 → (B, D) of unit length."""
        return self.encoder((images - self.encoder.mean) / self.encoder.std)


def to_onnx(run: Run, file: str | Path, *, check: bool = True) -> Path:
    """Write the encoder of a run as one ONNX file, and hold it against torch.

    Its input ``images`` is (B, 3, H, W) float32, RGB in 0..1, H = W the encoder's image size; its
    output ``embeddings`` is (B, D), of unit length. B is free.

    Args:
        run: a finished run.
        file: where to, ending in .onnx.
        check: compare with torch through onnxruntime, for batches of one and of three.

    Raises:
        ExportError: packages are missing, or the two disagree; then no file is left.
    """
    file = Path(file).expanduser()
    if file.suffix != ".onnx":
        raise ExportError(f"{file}: the file must end in .onnx.")
    _need("onnx", "onnxscript", *(["onnxruntime"] if check else []))
    model = _FromPixels(run.encoder()).eval()
    side = model.encoder.image_size
    example = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own internals
            torch.onnx.export(
                model,
                (example,),
                str(partial),
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        if check:
            _compare(partial, model, side)
    return file


def _compare(file: Path, model: nn.Module, side: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = model(images).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        worst = float(np.abs(found - expected).max())
        if not worst <= _TOLERANCE:
            raise ExportError(
                f"the ONNX file differs from torch by up to {worst:.1e} in a coordinate (allowed: "
                f"{_TOLERANCE:.0e}): try other versions of torch and onnxscript."
            )


def to_hub(run: Run, folder: str | Path) -> Path:
    """Write a run as a folder in the layout of the Hugging Face Hub, with a model card.

    ``model.safetensors`` and ``config.json`` are timm's own format, so that the backbone opens with
    ``timm.create_model("hf-hub:you/name")`` after an upload; ``head.safetensors`` and
    ``sobook.json`` hold the rest, for `from_hub`. Nothing is uploaded.

    Args:
        run: a finished run.
        folder: a new or empty folder.

    Raises:
        ExportError: the folder holds something already.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"{folder} is not empty: name a new folder.")
    encoder, retrieval = run.encoder(), run.retrieval
    root = f"{run.config.root}{os.sep}"  # folders of this machine are nobody else's business
    retrieval["notes"] = [note.replace(root, "") for note in retrieval["notes"]]
    folder.mkdir(parents=True, exist_ok=True)
    sized = {"img_size": encoder.image_size} if hasattr(encoder.backbone, "patch_embed") else None
    timm.models.save_for_hf(encoder.backbone, folder, model_args=sized, safe_serialization=True)
    save_file(
        {name: value.contiguous() for name, value in encoder.head.state_dict().items()},
        folder / "head.safetensors",
    )
    card = {
        "encoder": encoder.settings(),
        "config": {**run.config.to_dict(), "root": None, "run_dir": None},
        "retrieval": retrieval,
    }
    write_json(folder / "sobook.json", card)
    (folder / "README.md").write_text(_model_card(run, encoder, retrieval), encoding="utf-8")
    return folder


def from_hub(folder: str | Path) -> Encoder:
    """The encoder that `to_hub` wrote (a downloaded copy of the folder will do)."""
    folder = Path(folder).expanduser()
    if not (folder / "sobook.json").is_file():
        raise ExportError(f"{folder} has no sobook.json: give a folder that to_hub wrote.")
    settings = json.loads((folder / "sobook.json").read_text(encoding="utf-8"))["encoder"]
    encoder = Encoder.create(weights=None, **settings)
    encoder.backbone.load_state_dict(load_file(folder / "model.safetensors"))
    encoder.head.load_state_dict(load_file(folder / "head.safetensors"))
    return encoder.eval()


def _model_card(run: Run, encoder: Encoder, retrieval: dict) -> str:
    """What the Hub shows: what it is, how to use it, what it was measured on."""
    config, state = run.config, run.state
    first = next(iter(retrieval["recall"]))
    low, high = retrieval[f"recall_at_{first}_interval"]
    recalls = ", ".join(f"Recall@{k} {value:.3f}" for k, value in retrieval["recall"].items())
    loss = f"Proxy Anchor + {config.so_weight:g} · soft orthogonality"
    loss = loss if config.so_weight else "Proxy Anchor"
    notes = "".join(f"- {note}\n" for note in retrieval["notes"])
    return f"""\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [image-retrieval, metric-learning, sobook]
---

# {encoder.name}, trained for retrieval on {config.dataset}

Embeds an image as a unit vector of {encoder.dim} numbers; the cosine of two of them says how alike
the images are. Trained by sobook with {loss}, {config.epochs} epochs, seed {config.seed}, on
{state["train_images"]:,} images of {len(state["class_names"]):,} classes.

```python
from sobook.export import from_hub
encoder = from_hub("path/to/this/folder")  # images (B, 3, H, W) uint8 → (B, {encoder.dim})
```

The backbone alone opens with timm. Images: short side to
{evaluation_short_side(encoder.image_size)}, center crop of {encoder.image_size} pixels.

## Measured

On {retrieval["queries"]:,} images of test classes never trained on: {recalls}; Recall@{first} has a
95 % bootstrap interval over classes of [{low:.3f}, {high:.3f}]. MAP@R {retrieval["map_at_r"]:.3f}.
The epoch was chosen by: {config.selection}.
{notes}
## To know before using it

It was trained for classes like those of its data set and says little about others. The license of
the training images may bind what is made from them: see the data set's own terms.
"""


def _need(*packages: str) -> None:
    import importlib.util

    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} is missing: install it with pip install 'sobook[export]'."
        )
