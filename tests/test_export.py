"""Encoders taken elsewhere: ONNX against torch, and the Hub's folder."""

import json
import os
import shutil

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version

from sobook import export
from sobook.cli import main
from sobook.encoder import Encoder
from sobook.errors import SobookError
from sobook.export import HubEncoder
from sobook.training.config import TrainConfig
from sobook.training.loop import fit
from sobook.training.run import Run


@pytest.fixture(scope="module")
def run(tiny_aviary, tiny_options, tmp_path_factory):
    return fit(
        TrainConfig(
            root=tiny_aviary,
            options=tiny_options,
            dim=16,
            batch_size=8,
            epochs=1,
            selection="last",
            run_dir=tmp_path_factory.mktemp("export") / "run",
        ),
        progress=False,
    )


def pictures(run, batch: int) -> torch.Tensor:
    side = run.encoder().image_size
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)


needs_onnx = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9"), reason="sobook[export] needs torch 2.9"
)


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    pytest.importorskip("onnxscript")
    return export.to_onnx(run, tmp_path_factory.mktemp("onnx") / "encoder.onnx")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    return export.to_hub(run, tmp_path_factory.mktemp("hub") / "model")


@needs_onnx
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

    def test_an_exporter_that_fails_is_one_sentence(self, run, tmp_path, monkeypatch):
        pytest.importorskip("onnxscript")

        def fails(*_, **__):
            raise RuntimeError("Failed to convert the exported program\nand two pages more")

        monkeypatch.setattr(torch.onnx, "export", fails)
        with pytest.raises(SobookError, match=r"torch \S+ cannot write ONNX.*program Newer ones"):
            export.to_onnx(run, tmp_path / "encoder.onnx")
        assert not list(tmp_path.iterdir())

    def test_a_difference_leaves_no_file(self, run, tmp_path, monkeypatch):
        pytest.importorskip("onnxscript")
        monkeypatch.setattr(export, "_TOLERANCE", -1.0)
        with pytest.raises(SobookError, match="differs from torch"):
            export.to_onnx(run, tmp_path / "encoder.onnx")
        assert not list(tmp_path.iterdir())


class TestHub:
    def test_round_trip(self, run, folder, tmp_path):
        loaded = HubEncoder.from_pretrained(folder)
        assert loaded.fingerprint() == run.encoder().fingerprint() and not loaded.training
        loaded.save_pretrained(tmp_path / "again")
        for file in folder.iterdir():
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()

    def test_timm_opens_the_backbone(self, run, folder):
        """By what timm reads from "hf-hub:…"; "local-dir:…" takes no safetensors before 1.0.28."""
        config = json.loads((folder / "config.json").read_text())
        backbone = timm.create_model(
            config["architecture"], **{"num_classes": 0} | config["model_args"]
        ).eval()
        timm.models.load_checkpoint(backbone, str(folder / "model.safetensors"))
        encoder = run.encoder()
        images = encoder.normalize(pictures(run, 2))
        with torch.inference_mode():
            torch.testing.assert_close(backbone(images), encoder.backbone(images))

    def test_push_uploads_what_to_hub_writes(self, run, folder, monkeypatch):
        uploaded = []

        class Hub:
            def __init__(self, token):
                pass

            def create_repo(self, repo_id, **_):
                return type("Repo", (), {"repo_id": repo_id})

            def upload_folder(self, folder_path, **_):
                uploaded.extend(sorted(file.name for file in folder_path.iterdir()))

        monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
        HubEncoder.from_run(run).push_to_hub("me/birds")
        assert uploaded == sorted(file.name for file in folder.iterdir())
        assert not [name for name in uploaded if name.endswith((".bin", ".pth", ".pkl"))]

    def test_card(self, run, folder):
        card = (folder / "README.md").read_text()
        assert f"Recall@1 {run.retrieval['recall']['1']:.3f}" in card
        about = json.loads((folder / "config.json").read_text())["sobook"]["run"]
        assert TrainConfig.from_dict(about["config"]) == run.config.replace(root=None, run_dir=None)

    @pytest.mark.parametrize("root_is_given", [True, False])
    def test_no_folder_of_this_machine_is_named(self, run, tmp_path, monkeypatch, root_is_given):
        root = tmp_path / "my photos"
        monkeypatch.setenv("SOBOOK_DATA", str(root))
        copy = shutil.copytree(run.path, tmp_path / "run")
        config = run.config.to_dict() | {"root": str(root) if root_is_given else None}
        config |= {"weights": str(root / "deit.safetensors"), "run_dir": str(copy)}
        (copy / "config.json").write_text(json.dumps(config))
        notes = [f"left out {root}/a/broken.jpg: {root}/a/broken.jpg cannot be read"]
        (copy / "retrieval.json").write_text(json.dumps(run.retrieval | {"notes": notes}))
        folder = export.to_hub(Run.load(copy), tmp_path / "hub")
        for file in ("README.md", "config.json"):
            text = (folder / file).read_text()
            assert str(tmp_path) not in text and "a/broken.jpg: a/broken.jpg cannot" in text
        assert '"deit.safetensors"' in (folder / "config.json").read_text()

    def test_nothing_is_overwritten(self, run, folder):
        with pytest.raises(SobookError, match="is not an empty folder"):
            export.to_hub(run, folder)

    def test_the_folder_is_an_encoder_by_name(self, run, folder, monkeypatch):
        """Its backbone, with the name, size of image and token of the run; also from elsewhere."""
        trained = run.encoder()
        monkeypatch.chdir(folder.parent)
        for name in (str(folder), folder.name, f"local-dir:{folder}"):
            encoder = Encoder.create(name)
            assert encoder.settings() == trained.settings() | {"dim": None}
            for key, value in encoder.backbone.state_dict().items():
                assert torch.equal(value, trained.backbone.state_dict()[key])
        random = Encoder.create(folder.name, weights=None).fingerprint()
        assert random != encoder.fingerprint()
        assert Encoder.create(trained.name, weights=folder).fingerprint() == encoder.fingerprint()

    def test_a_model_of_another_folder_moves_into_this_one(self, tmp_path):
        """Its own name is a path of this machine: nobody else could open it."""
        torch.manual_seed(0)
        source = timm.create_model("test_vit", num_classes=3)
        timm.models.save_for_hf(source, tmp_path / "theirs", safe_serialization=True)
        encoder = HubEncoder.create(str(tmp_path / "theirs"), dim=8).eval()
        encoder.save_pretrained(tmp_path / "ours")
        shutil.rmtree(tmp_path / "theirs")
        moved = (tmp_path / "ours").rename(tmp_path / "moved")
        assert str(tmp_path) not in (moved / "config.json").read_text()
        again = HubEncoder.from_pretrained(moved)
        images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
        with torch.inference_mode():
            torch.testing.assert_close(again(images), encoder(images))

    def test_a_disk_that_is_full_leaves_no_folder(self, run, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(export, "save_file", full)
        with pytest.raises(SobookError, match="hub could not be written .*make room"):
            export.to_hub(run, tmp_path / "hub")
        assert not list(tmp_path.iterdir())

    def test_others_may_read_the_folder(self, run, tmp_path):
        before = os.umask(0o022)
        try:
            export.to_hub(run, tmp_path / "hub")
        finally:
            os.umask(before)
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "hub").iterdir()} == {0o644}

    def test_not_a_hub_folder(self, tmp_path):
        with pytest.raises(SobookError, match="is not what"):
            HubEncoder.from_pretrained(tmp_path)


def test_command_line(run, tmp_path, capsys):
    assert main(["export", str(run.path), "--hub", str(tmp_path / "hub")]) == 0
    assert (tmp_path / "hub" / "README.md").exists()
    assert main(["export", str(run.path)]) == 1
    assert "name --onnx, --hub or both" in capsys.readouterr().err
