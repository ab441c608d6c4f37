"""The encoder: forward, attention, and weights from wherever people have them."""

import argparse
import json

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from sobook import files
from sobook.course.aviary import micro_deit
from sobook.encoder import Encoder
from sobook.errors import EncoderError, SobookError

MICRO = micro_deit.NAME
TINY = "test_vit"  # timm's own toy ViT: 0.3 M parameters


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder.create(MICRO, dim=16, weights="micro").eval()


@pytest.fixture
def batch():
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)


def test_unit_length_float32(encoder, batch):
    embeddings = encoder(batch)
    assert embeddings.shape == (5, 16) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(batch).dtype == torch.float32
    with pytest.raises(SobookError, match="shape"):
        encoder(batch[0])


def test_without_head_the_embedding_is_timms_normalized_feature(batch):
    encoder = Encoder.create(MICRO, weights="micro").eval()
    backbone = timm.create_model(MICRO, num_classes=0).eval()
    backbone.load_state_dict(encoder.backbone.state_dict())
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    features = backbone((batch / 255 - mean) / std)
    torch.testing.assert_close(encoder(batch), nn.functional.normalize(features, dim=1))
    assert encoder.dim == encoder.num_features == 128


@pytest.mark.parametrize("training", [True, False])
def test_tokens(batch, training):
    """The mean is what timm does for distilled DeiT, in training and in evaluation."""
    features = {}
    for token in (None, "cls", "dist", "mean"):
        encoder = Encoder.create(MICRO, weights="micro", token=token).train(training)
        features[token] = encoder.features(batch)
    torch.testing.assert_close(features["mean"], features[None])
    torch.testing.assert_close(features["mean"], (features["cls"] + features["dist"]) / 2)
    assert not torch.allclose(features["cls"], features["dist"])


def test_attention_is_that_which_timm_computes(encoder, batch):
    layer, inputs = encoder.backbone.blocks[-1].attn, []
    hook = layer.attn_drop.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    layer.fused_attn, fused = False, layer.fused_attn
    try:
        encoder(batch)
    finally:
        hook.remove()
        layer.fused_attn = fused
    attention = encoder.attention(batch)
    torch.testing.assert_close(attention, inputs[0][:, :, 0])
    torch.testing.assert_close(attention.sum(2), torch.ones(5, 4))


def test_micro_stays_what_it_is():
    encoder = Encoder.create(MICRO)
    assert encoder.fingerprint() == "ab7dbdd24b7a1a31"
    assert files.shipped(micro_deit.WEIGHTS).stat().st_size <= 6_000_000
    again = Encoder.create(weights=None, **encoder.settings())
    assert again.fingerprint() != encoder.fingerprint()
    again.load_state_dict(encoder.state_dict())
    assert again.fingerprint() == encoder.fingerprint()


# The last is a transformer whose patches overlap: 72 is no multiple of their 7 pixels.
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "pvt_v2_b0"])
def test_networks_of_convolutions_take_any_size(name):
    torch.manual_seed(0)
    encoder = Encoder.create(name, weights=None, image_size=72).eval()
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0).eval()  # the same random weights
    images = encoder.normalize(torch.randint(0, 256, (2, 3, 72, 72), dtype=torch.uint8))
    assert encoder.image_size == 72 and len(encoder.fingerprint()) == 16
    torch.testing.assert_close(encoder.features(images), backbone(images))


def test_the_size_of_the_feature_is_that_after_pooling():
    encoder = Encoder.create("mobilenetv3_small_050", dim=8, weights=None).eval()
    assert encoder.head[1].weight.shape == (8, 1024) and encoder.num_features == 1024
    with pytest.raises(EncoderError, match="no attention"):
        encoder.attention(torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "deit_smal_patch16_224"}, "unknown encoder.*deit_small_patch16_224"),
        ({"name": TINY, "weights": "micro"}, f"for {MICRO}, 'micro'"),
        ({"name": MICRO, "token": "clss"}, "unknown token.*'cls'"),
        ({"name": "test_resnet", "token": "cls", "weights": None}, "no 'cls' token"),
        ({"name": MICRO, "dim": 0}, "dim is 0"),
        ({"name": MICRO, "image_size": 60, "weights": None}, "patch size 8"),
        ({"name": "vit_small_patch16_18x2_224"}, "No pretrained weights"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(SobookError, match=words):
        Encoder.create(**arguments)


@pytest.fixture(scope="module")
def state():
    """State dict of TINY with its classifier."""
    return timm.create_model(TINY, num_classes=10).state_dict()


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def without(state, part):
    return {key: v for key, v in state.items() if not key.startswith(part)}


def has(encoder, state):
    tensors = encoder.backbone.state_dict()
    return tensors and all(torch.equal(v, state[key].float()) for key, v in tensors.items())


LOADED = {
    "model": lambda s: {"model": s, "args": argparse.Namespace(lr=1)},
    "data parallel": lambda s: {"state_dict": prefixed("module.", s), "epoch": 3},
    "EMA": lambda s: {"state_dict": {}, "state_dict_ema": s},
    "other heads": lambda s: without(s, "head") | {"classifier.weight": torch.zeros(5, 64)},
}


@pytest.mark.parametrize("wrapped", LOADED)
def test_files_as_timm_reads_them(state, tmp_path, wrapped):
    torch.save(LOADED[wrapped](state), tmp_path / "w.pth.tar")
    assert has(Encoder.create(TINY, weights=tmp_path / "w.pth.tar"), state)


def test_folders_dicts_and_half_precision(state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    assert has(Encoder.create(TINY, weights=tmp_path), state)
    half = {key: value.half() for key, value in state.items()}
    assert has(Encoder.create(TINY, weights=half), half)


@pytest.mark.parametrize("name", [TINY, MICRO])
def test_positions_are_resampled_for_another_size(name):
    source = Encoder.create(name, weights=None).backbone
    encoder = Encoder.create(name, weights=source.state_dict(), image_size=96)
    expected = resample_abs_pos_embed(
        source.pos_embed,
        list(encoder.backbone.patch_embed.grid_size),
        num_prefix_tokens=source.num_prefix_tokens,
    )
    torch.testing.assert_close(encoder.backbone.pos_embed, expected)
    assert encoder(torch.zeros(1, 3, 96, 96)).shape == (1, encoder.num_features)


def test_real_deit_is_plain_timm(shared_weights):
    file = shared_weights / "deit_tiny_patch16_224.pth"
    encoder = Encoder.create("deit_tiny_patch16_224", weights=file).eval()
    plain = timm.create_model("deit_tiny_patch16_224").eval()
    plain.load_state_dict(torch.load(file, weights_only=True)["model"])
    images = torch.randn(2, 3, 224, 224)
    expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder.features(images), expected)


REFUSED = {
    "blocks.5": lambda s: without(s, "blocks.5"),
    "misshapen": lambda s: s | {"norm.weight": torch.zeros(128)},
    "dist_token": lambda s: s | {"dist_token": s["cls_token"]},
    "patch_embed": lambda s: s | {"patch_embed.proj.weight": torch.zeros(64, 3, 14, 14)},
    "78 missing": lambda s: prefixed("backbone.", s),
    "teacher": lambda s: {"teacher": s},
}


@pytest.mark.parametrize("word", REFUSED)
def test_weights_that_do_not_fit(state, word):
    with pytest.raises(EncoderError, match=word):
        Encoder.create(TINY, weights=REFUSED[word](state))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_are_not_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(EncoderError, match="torch.save"):
        Encoder.create(TINY, weights=tmp_path / name)


@pytest.fixture
def folder(tmp_path):
    """Folder of a timm model, as timm's `save_for_hf` writes it."""
    model = timm.create_model(TINY, num_classes=5, img_size=96)
    timm.models.save_for_hf(model, tmp_path, model_args={"img_size": 96}, safe_serialization=True)
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_timm(folder, prefix):
    encoder = Encoder.create(f"{prefix}{folder}")
    assert has(encoder, timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict())
    assert encoder.image_size == 96 and encoder.name == f"local-dir:{folder}"
    again = Encoder.create(weights=None, **encoder.settings())
    again.load_state_dict(encoder.state_dict())
    assert again.fingerprint() == encoder.fingerprint()
    assert Encoder.create(f"{prefix}{folder}", image_size=64).image_size == 64


def test_a_folder_of_another_library(tmp_path):
    for content in ({"architectures": ["ViTModel"]}, {"architecture": "vit_of_tomorrow"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(EncoderError, match="cannot be made"):
            Encoder.create(str(tmp_path))


def test_a_model_on_the_hub(folder, monkeypatch):
    asked = []

    def download(repo_id, filename, revision=None, **_):
        asked.append((repo_id, filename, revision))
        return str(folder / filename)

    for module in ("sobook.encoder", "timm.models._hub"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    encoder = Encoder.create("hf-hub:you/birds@v2")
    assert has(encoder, timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict())
    assert encoder.name == "hf-hub:you/birds@v2"
    assert {(name, revision) for name, _, revision in asked} == {("you/birds", "v2")}


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=f"cannot be made.*{MICRO}"):
        Encoder.create("hf-hub:you/birds")
