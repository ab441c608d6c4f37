"""Names of encoders, folders and the Hub, without a network, or with one that fails."""

import json
import time
import types

import huggingface_hub
import pytest
import requests
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.utils import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
from safetensors.torch import save_file

from sobook import hub
from sobook.encoder import Encoder
from sobook.errors import EncoderError

TINY = "test_vit.r160_in1k"


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A Hub: its `files`, {(repository, file): path or exception}, and what was `asked` for."""
    files, asked = {}, []

    def download(repository, file, revision=None, local_files_only=False):
        asked.append((repository, file, revision, local_files_only))
        found = files.get((repository, file))
        if isinstance(found, BaseException):
            raise found
        if found is None:
            raise EntryNotFoundError(f"404 {file}")
        return str(found)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.requests, "head", lambda *_, **__: None)
    return types.SimpleNamespace(files=files, asked=asked)


def model_folder(path, name="test_vit", **args):
    """The folder of a timm model as timm's `save_for_hf` writes it."""
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=5, **args)
    timm.models.save_for_hf(model, path, model_args=args or None, safe_serialization=True)
    return path, model.state_dict()


def same(encoder, state):
    found = encoder.backbone.state_dict()
    return found and all(torch.equal(found[key], state[key]) for key in found)


class TestFind:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("resnet18", "resnet18"),
            ("resnet18.a1_in1k", "resnet18.a1_in1k"),
            ("  ResNet18.A1_in1k ", "resnet18.a1_in1k"),
            ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
            ("hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
            ("hf_hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
            ("HF-Hub:timm/resnet18", "resnet18"),
            ("https://huggingface.co/timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
            ("https://huggingface.co/timm/resnet18.a1_in1k/", "resnet18.a1_in1k"),
            ("hf-hub:timm/resnet18.made_later", "hf-hub:timm/resnet18.made_later"),
            ("hf-hub:You/Birds@v2", "hf-hub:You/Birds@v2"),
            ("vit_base_patch16_224_in21k", "vit_base_patch16_224_in21k"),  # an old name
        ],
    )
    def test_names(self, name, expected):
        assert hub.find(name) == expected

    @pytest.mark.parametrize("prefix", ["local-dir:", "local_dir:", ""])
    def test_folders(self, tmp_path, monkeypatch, prefix):
        (tmp_path / "my model").mkdir()
        monkeypatch.chdir(tmp_path)
        assert hub.find(f"{prefix}my model") == f"local-dir:{tmp_path / 'my model'}"
        (tmp_path / "resnet18").mkdir()  # a name in timm's list stays one
        assert hub.find("resnet18") == "resnet18"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("deit_smal_patch16_224", "Did you mean 'deit_small_patch16_224'"),
            ("resnet18.a1_in1kk", "Did you mean 'resnet18.a1_in1k'"),
            ("facebook/dinov2-small", "Hugging Face Hub write hf-hub:facebook/dinov2-small"),
            ("", "unknown encoder ''"),
        ],
    )
    def test_unknown(self, name, words):
        with pytest.raises(EncoderError, match=words):
            hub.find(name)

    def test_weights_given_as_encoder(self, tmp_path):
        (tmp_path / "deit.pth").write_bytes(b"x")
        with pytest.raises(EncoderError, match="give it as weights"):
            hub.find(str(tmp_path / "deit.pth"))


class TestFolder:
    @pytest.mark.parametrize("image_size", [None, 96])
    def test_of_timm(self, tmp_path, image_size):
        path, state = model_folder(tmp_path / "model", img_size=96)
        encoder = Encoder.create(str(path), image_size=image_size)
        assert same(encoder, state) and encoder.image_size == 96
        again = Encoder.create(weights=None, **encoder.settings())
        again.load_state_dict(encoder.state_dict())
        assert again.fingerprint() == encoder.fingerprint()

    def test_old_config_on_one_level(self, tmp_path):
        path, state = model_folder(tmp_path / "model", "test_resnet")
        config = {"architecture": "test_resnet", "num_classes": 5, "mean": [0.1] * 3, "labels": []}
        (path / "config.json").write_text(json.dumps(config))
        encoder = Encoder.create(f"local-dir:{path}")
        assert same(encoder, state)
        torch.testing.assert_close(encoder.mean.flatten(), torch.full((3,), 0.1))

    @pytest.mark.parametrize("content", ['{"architectures": ["ViTModel"]}', "[]", "<html>", None])
    def test_of_another_library(self, tmp_path, content):
        if content:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(EncoderError, match="no config.json that names an architecture"):
            Encoder.create(str(tmp_path))

    def test_of_a_model_that_this_timm_lacks(self, tmp_path):
        (tmp_path / "config.json").write_text('{"architecture": "vit_of_tomorrow"}')
        with pytest.raises(EncoderError, match=r"cannot be made: .*vit_of_tomorrow"):
            Encoder.create(str(tmp_path))


class TestHub:
    def test_of_its_own(self, tmp_path, served):
        path, state = model_folder(tmp_path / "model")
        for name in ("config.json", "model.safetensors"):
            served.files["you/birds", name] = path / name
        encoder = Encoder.create("hf-hub:you/birds@v2")
        assert same(encoder, state) and encoder.name == "hf-hub:you/birds@v2"
        assert {revision for _, _, revision, _ in served.asked} == {"v2"}

    @pytest.mark.parametrize("offline", [False, True])
    def test_timms_own_weights(self, tmp_path, served, monkeypatch, offline):
        """Where the Hub cannot be reached, the cache is asked, and no more than that."""
        state = timm.create_model("test_vit", num_classes=1000).state_dict()
        save_file(state, tmp_path / "model.safetensors")
        served.files[f"timm/{TINY}", "model.safetensors"] = tmp_path / "model.safetensors"
        if offline:
            monkeypatch.setattr(hub.requests, "head", unreachable)
        assert same(Encoder.create(f"timm/{TINY}"), state)
        assert served.asked == [(f"timm/{TINY}", "model.safetensors", None, offline)]

    def test_only_the_old_format(self, tmp_path, served):
        state = timm.create_model("test_vit", num_classes=1000).state_dict()
        torch.save(state, tmp_path / "w.bin")
        served.files[f"timm/{TINY}", "pytorch_model.bin"] = tmp_path / "w.bin"
        assert same(Encoder.create(TINY), state)

    @pytest.mark.parametrize(
        ("problem", "words"),
        [
            (GatedRepoError, "accept its terms at https://.*/you/birds, then log in"),
            (RepositoryNotFoundError, "no such model, or it is private: log in"),
            (OSError, r"\[Errno 13\] Permission denied"),
            (RuntimeError, "429"),
            (None, "it has no model.safetensors or pytorch_model.bin"),
        ],
    )
    def test_what_the_hub_refuses(self, served, problem, words):
        if problem is OSError:
            served.files["you/birds", "model.safetensors"] = PermissionError(
                13, "Permission denied"
            )
        elif problem is RuntimeError:
            served.files["you/birds", "model.safetensors"] = RuntimeError("429 Too many\nrequests")
        elif problem:
            error = problem("401 long\ntext", response=requests.Response())
            served.files["you/birds", "model.safetensors"] = error
        with pytest.raises(EncoderError, match=words) as caught:
            Encoder.create("hf-hub:you/birds")
        assert str(caught.value).isprintable() and "micro" in str(caught.value)

    @pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "hf-hub:you/birds"])
    def test_no_network_is_found_out_at_once(self, monkeypatch, tmp_path, name):
        """Of the Hub's own client, which would try for a minute, only the cache is asked."""
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        begin = time.monotonic()
        with pytest.raises(EncoderError, match="does not reach it .*ConnectionError.*micro"):
            Encoder.create(name)
        assert time.monotonic() - begin < 10

    def test_offline_by_wish(self, monkeypatch, tmp_path):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(hub.requests, "head", lambda *_, **__: pytest.fail("asked"))
        with pytest.raises(EncoderError, match="HF_HUB_OFFLINE is set.*local file"):
            Encoder.create("deit_tiny_patch16_224")

    def test_wrong_proxy(self, monkeypatch, tmp_path):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
        with pytest.raises(EncoderError, match=r"does not reach it \(ProxyError\)"):
            Encoder.create("deit_tiny_patch16_224")


def unreachable(*_, **__):
    raise requests.ConnectionError("Network is unreachable")
