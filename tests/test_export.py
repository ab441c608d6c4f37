"""Trained encoders elsewhere: ONNX against torch, and the Hub's folder against plain timm."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version

from sobook import export
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


def random_images(run, batch: int) -> torch.Tensor:
    side = run.encoder().image_size
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    if Version(torch.__version__) < Version("2.9"):
        pytest.skip("sobook[export] needs torch 2.9")
    pytest.importorskip("onnxscript")
    return export.to_onnx(run, tmp_path_factory.mktemp("onnx") / "encoder.onnx")


@pytest.mark.parametrize("batch", [1, 5])
def test_onnxruntime_gives_the_same_embeddings(run, file, batch):
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    images = random_images(run, batch)
    (embeddings,) = session.run(None, {"images": images.float().numpy() / 255})
    with torch.inference_mode():
        expected = run.encoder()(images).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_an_onnx_file_that_differs_is_not_left(run, file, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    with pytest.raises(SobookError, match="differs"):
        export.to_onnx(run, tmp_path / "encoder.onnx")
    assert not list(tmp_path.iterdir())


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


def test_timm_opens_the_backbone(run, folder):
    """With what timm reads from "hf-hub:…"; "local-dir:…" takes no safetensors before 1.0.28."""
    config = json.loads((folder / "config.json").read_text())
    settings = {"num_classes": 0} | config["model_args"]
    backbone = timm.create_model(config["architecture"], **settings).eval()
    timm.models.load_checkpoint(backbone, str(folder / "model.safetensors"))
    encoder = run.encoder()
    images = encoder.normalize(random_images(run, 2))
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), encoder.backbone(images))


def test_the_card_has_the_numbers_and_no_folder_of_this_machine(run, tmp_path):
    copy, root = shutil.copytree(run.path, tmp_path / "run"), tmp_path / "my photos"
    config = run.config.to_dict() | {"root": str(root), "run_dir": str(copy)}
    config |= {"weights": str(root / "deit.safetensors")}
    (copy / "config.json").write_text(json.dumps(config))
    notes = [f"left out {root}/a/broken.jpg: {root}/a/broken.jpg cannot be read"]
    (copy / "retrieval.json").write_text(json.dumps(run.retrieval | {"notes": notes}))
    folder = export.to_hub(Run.load(copy), tmp_path / "hub")
    for file in ("README.md", "config.json"):
        text = (folder / file).read_text()
        assert str(tmp_path) not in text and "a/broken.jpg: a/broken.jpg cannot" in text
    assert f"Recall@1 {run.retrieval['recall']['1']:.3f}" in (folder / "README.md").read_text()
    assert '"deit.safetensors"' in (folder / "config.json").read_text()


def test_a_backbone_of_another_folder_moves_into_this_one(tmp_path):
    """Its own name is a path of this machine: nobody else could open it."""
    torch.manual_seed(0)
    source = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(source, tmp_path / "theirs", safe_serialization=True)
    encoder = HubEncoder.create(f"local-dir:{tmp_path / 'theirs'}", dim=8).eval()
    encoder.save_pretrained(tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")
    moved = (tmp_path / "ours").rename(tmp_path / "moved")
    assert str(tmp_path) not in (moved / "config.json").read_text()
    again = HubEncoder.from_pretrained(moved)
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), encoder(images))
