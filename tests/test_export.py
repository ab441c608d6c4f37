"""Trained encoders elsewhere: ONNX against torch, and the Hub's folder against plain timm."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image

from sobook import export
from sobook.data import image_sets
from sobook.data.loader import evaluation_crop, evaluation_short_side
from sobook.encoder import MICRO
from sobook.errors import SobookError
from sobook.export import HubEncoder
from sobook.training.config import TrainConfig
from sobook.training.loop import fit
from sobook.training.run import Run


@pytest.fixture(scope="module")
def run(tiny_aviary, tiny_options, tmp_path_factory):
    small = {"dim": 16, "batch_size": 8, "epochs": 1, "selection": "last"}
    folder = tmp_path_factory.mktemp("export") / "run"
    config = TrainConfig(root=tiny_aviary, options=tiny_options, run_dir=folder, **small)
    return fit(config, progress=False)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export.to_hub(run, tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def images(run):
    side = run.encoder().image_size
    return torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8)


def test_onnxruntime_gives_the_same_embeddings(run, images, tmp_path, monkeypatch):
    if Version(torch.__version__) < Version("2.9"):
        pytest.skip("sobook[export] needs torch 2.9")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = export.to_onnx(run, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(file)
    (embeddings,) = session.run(None, {"images": images.float().numpy() / 255})
    with torch.inference_mode():
        expected = run.encoder()(images).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    with pytest.raises(SobookError, match="differs"):
        export.to_onnx(run, tmp_path / "other.onnx")
    assert list(tmp_path.iterdir()) == [file]  # one that differs is not left


def test_without_the_extra_onnx_is_one_sentence(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SobookError, match=r"pip install 'sobook\[export\]'"):
        export.to_onnx(run, tmp_path / "encoder.onnx")


def test_the_hub_folder_is_read_back_and_written_again(run, folder, tmp_path):
    loaded = HubEncoder.from_pretrained(folder)
    assert loaded.fingerprint() == run.encoder().fingerprint() and not loaded.training
    loaded.save_pretrained(tmp_path / "again")
    for file in folder.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(SobookError, match="exists"):
        export.to_hub(run, folder)
    with pytest.raises(SobookError, match="not written by sobook"):
        HubEncoder.from_pretrained(tmp_path)


WITHOUT_SOBOOK = """
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

folder, onnx, pictures = Path(sys.argv[1]), Path(sys.argv[2]), map(Image.open, sys.argv[4:])
# "local-dir:" reads no safetensors before timm 1.0.28; "hf-hub:" does.
backbone = timm.create_model(f"local-dir:{folder}").eval()
timm.models.load_checkpoint(backbone, str(folder / "model.safetensors"))
settings = timm.data.resolve_model_data_config(backbone, use_test_size=True)
transform = timm.data.create_transform(**settings)
images = torch.stack([transform(picture) for picture in pictures])
with torch.inference_mode():
    features = backbone(images)
    if head := load_file(folder / "head.safetensors"):
        features = F.layer_norm(features, features.shape[1:])
        features = F.linear(features, head["1.weight"], head["1.bias"])
embeddings = {"timm": F.normalize(features).numpy()}
if onnx.exists():
    import onnxruntime

    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (images * std + mean).numpy()
    (embeddings["onnx"],) = onnxruntime.InferenceSession(onnx).run(None, {"images": pixels})
assert "sobook" not in sys.modules
np.savez(sys.argv[3], **embeddings)
"""


@pytest.mark.parametrize(
    "name, settings",
    [
        (MICRO, {"weights": "micro", "dim": 16}),
        ("deit_tiny_patch16_224", {"weights": "shared"}),
        ("resnet18.a1_in1k", {"weights": None, "dim": 8, "image_size": 90}),
        ("vit_tiny_patch16_224", {"weights": None, "image_size": 96, "token": "cls"}),
    ],
)
def test_without_sobook_every_export_gives_the_same_embeddings(
    name, settings, tiny_aviary, tiny_options, tmp_path, request
):
    if settings["weights"] == "shared":
        weights = request.getfixturevalue("shared_weights") / "deit_tiny_patch16_224.pth"
        settings = settings | {"weights": weights}
    encoder = HubEncoder.create(name, **settings).eval()
    encoder.save_pretrained(tmp_path / "hub")
    has_onnx = Version(torch.__version__) >= Version("2.9") and find_spec("onnxruntime")
    if has_onnx and name == MICRO:  # the others take long
        export.to_onnx(SimpleNamespace(encoder=lambda: encoder), tmp_path / "encoder.onnx")
    drawn = image_sets.load("aviary", "test", tiny_aviary, **tiny_options)
    pictures = [Image.open(path) for path in drawn.paths[:6]]
    files = []
    for position, picture in enumerate(pictures):  # wide, tall, large and small
        size = [(150, 210), (301, 200), (64, 91), (500, 377), (224, 224), (97, 640)][position]
        files.append(tmp_path / f"{position}.png")
        picture.convert("RGB").resize(size).save(files[-1])
    code = [sys.executable, "-c", WITHOUT_SOBOOK, tmp_path / "hub", tmp_path / "encoder.onnx"]
    subprocess.run([*code, tmp_path / "out.npz", *files], check=True, cwd=tmp_path)
    crops = [evaluation_crop(Image.open(file), encoder.image_size) for file in files]
    with torch.inference_mode():
        expected = encoder(torch.stack(crops)).numpy()
    for embeddings in np.load(tmp_path / "out.npz").values():
        assert (embeddings * expected).sum(1).min() > 0.9999


def test_timm_resizes_as_sobook_does_at_every_size(tmp_path):
    encoder = HubEncoder.create("test_resnet", weights=None)
    for size in (*range(32, 64), 224, 443, 815, 890):
        encoder.image_size = size
        encoder.save_pretrained(tmp_path / "hub")
        config = json.loads((tmp_path / "hub/config.json").read_text())["pretrained_cfg"]
        assert int(size / config["crop_pct"]) == evaluation_short_side(size)


def test_the_card_has_the_numbers_and_no_folder_of_this_machine(run, tmp_path):
    copy, root = shutil.copytree(run.path, tmp_path / "run"), tmp_path / "my photos"
    config = run.config.to_dict() | {"root": str(root), "run_dir": str(copy)}
    config |= {"weights": str(root / "deit.safetensors")}
    (copy / "config.json").write_text(json.dumps(config))
    notes = [f"left out {root}/a/broken.jpg: {root}/a/broken.jpg cannot be read"]
    (copy / "retrieval.json").write_text(json.dumps(run.retrieval | {"notes": notes}))
    folder = export.to_hub(Run.load(copy), tmp_path / "hub")
    card = (folder / "README.md").read_text()
    assert str(tmp_path) not in card + (folder / "config.json").read_text()
    assert "a/broken.jpg: a/broken.jpg cannot" in card and "'deit.safetensors'" in card
    assert f"Recall@1 {run.retrieval['recall']['1']:.3f}" in card


def test_a_backbone_of_another_folder_moves_into_this_one(tmp_path):
    """Its own name is a path of this machine: nobody else could open it."""
    source = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(source, tmp_path / "theirs", safe_serialization=True)
    encoder = HubEncoder.create(f"local-dir:{tmp_path / 'theirs'}", dim=8).eval()
    encoder.save_pretrained(tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")
    moved = (tmp_path / "ours").rename(tmp_path / "moved")
    assert str(tmp_path) not in (moved / "config.json").read_text()
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(HubEncoder.from_pretrained(moved)(images), encoder(images))
