"""Trained encoders elsewhere: ONNX against torch, and the Hub's folder against plain timm."""

import json
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image

from sobook import export
from sobook.data.loader import evaluation_crop
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


def test_timm_opens_the_backbone_and_crops_alike(run, folder, rng):
    """With what timm reads from "hf-hub:…"; "local-dir:…" takes no safetensors before 1.0.28."""
    config = json.loads((folder / "config.json").read_text())
    settings = {"num_classes": 0} | config["model_args"]
    backbone = timm.create_model(config["architecture"], **settings).eval()
    timm.models.load_checkpoint(backbone, str(folder / "model.safetensors"))
    data = timm.data.resolve_data_config({}, pretrained_cfg=config["pretrained_cfg"])
    picture = Image.fromarray(rng.integers(0, 256, (150, 210, 3), dtype=np.uint8))
    image, encoder = timm.data.create_transform(**data)(picture)[None], run.encoder()
    with torch.inference_mode():
        expected = encoder.features(evaluation_crop(picture, encoder.image_size)[None])
        torch.testing.assert_close(backbone(image), expected)


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
    assert f"Recall@1 {run.retrieval['recall']['1']:.3f}" in card and "with timm" not in card


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
