"""Encoders taken elsewhere: ONNX against torch, and the Hub's folder."""

import json

import numpy as np
import pytest
import timm
import torch

from sobook import export
from sobook.cli import main
from sobook.export import ExportError
from sobook.training.config import TrainConfig
from sobook.training.loop import fit


@pytest.fixture(scope="module")
def run(tiny_aviary, tiny_options, tmp_path_factory):
    return fit(
        TrainConfig(
            root=tiny_aviary, options=tiny_options, dim=16, batch_size=8, epochs=1,
            selection="last", run_dir=tmp_path_factory.mktemp("export") / "run",
        ),
        progress=False,
    )  # fmt: skip


def pictures(run, batch: int) -> torch.Tensor:
    side = run.encoder().image_size
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    pytest.importorskip("onnxscript")
    return export.to_onnx(run, tmp_path_factory.mktemp("onnx") / "encoder.onnx")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export.to_hub(run, tmp_path_factory.mktemp("hub") / "model")


class TestOnnx:
    @pytest.mark.parametrize("batch", [1, 5])
    def test_same_as_torch(self, run, file, batch):
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(file)
        images = pictures(run, batch)
        (found,) = session.run(None, {"images": images.float().numpy() / 255})
        with torch.inference_mode():
            expected = run.encoder()(images).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)

    def test_a_difference_leaves_no_file(self, run, tmp_path, monkeypatch):
        pytest.importorskip("onnxscript")
        monkeypatch.setattr(export, "_TOLERANCE", -1.0)
        with pytest.raises(ExportError, match="differs from torch"):
            export.to_onnx(run, tmp_path / "encoder.onnx")
        assert not list(tmp_path.iterdir())

    def test_name(self, run, tmp_path):
        with pytest.raises(ExportError, match="must end in .onnx"):
            export.to_onnx(run, tmp_path / "encoder.pt")


class TestHub:
    def test_layout(self, folder):
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "README.md", "config.json", "head.safetensors", "model.safetensors", "sobook.json",
        }  # fmt: skip

    def test_round_trip(self, run, folder):
        assert export.from_hub(folder).fingerprint() == run.encoder().fingerprint()

    def test_timm_opens_the_backbone(self, run, folder):
        backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        encoder = run.encoder()
        images = encoder.normalize(pictures(run, 2))
        with torch.inference_mode():
            torch.testing.assert_close(backbone(images), encoder.backbone(images))

    def test_card(self, run, folder):
        card = (folder / "README.md").read_text()
        assert f"Recall@1 {run.retrieval['recall']['1']:.3f}" in card
        config = json.loads((folder / "sobook.json").read_text())["config"]
        assert TrainConfig.from_dict(config) == run.config.replace(root=None, run_dir=None)

    def test_nothing_is_overwritten(self, run, folder):
        with pytest.raises(ExportError, match="is not empty"):
            export.to_hub(run, folder)

    def test_not_a_hub_folder(self, tmp_path):
        with pytest.raises(ExportError, match="no sobook.json"):
            export.from_hub(tmp_path)


def test_command_line(run, tmp_path, capsys):
    assert main(["export", str(run.path), "--hub", str(tmp_path / "hub")]) == 0
    assert (tmp_path / "hub" / "README.md").exists()
    assert main(["export", str(run.path)]) == 1
    assert "name --onnx, --hub or both" in capsys.readouterr().err
