"""The encoder: weights, tokens, attention."""

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from sobook import files
from sobook.aviary import micro
from sobook.encoder import Encoder
from sobook.errors import EncoderError, SobookError

MICRO = micro.NAME
TINY = "test_vit.r160_in1k"  # timm's own toy ViT: 0.3 M parameters


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder.create(MICRO, dim=16, weights="micro").eval()


@pytest.fixture
def batch():
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)


class TestForward:
    def test_unit_length_float32(self, encoder, batch):
        embeddings = encoder(batch)
        assert embeddings.shape == (5, 16) and embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))

    def test_float32_under_autocast(self, encoder, batch):
        with torch.autocast("cpu", torch.bfloat16):
            assert encoder(batch).dtype == torch.float32

    def test_uint8_is_normalized_with_the_backbones_statistics(self, encoder, batch):
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        torch.testing.assert_close(encoder(batch), encoder((batch / 255 - mean) / std))

    def test_without_head_the_embedding_is_the_normalized_feature(self, batch):
        encoder = Encoder.create(MICRO, weights="micro").eval()
        expected = torch.nn.functional.normalize(encoder.features(batch), dim=1)
        torch.testing.assert_close(encoder(batch), expected)
        assert encoder.dim == encoder.num_features == 128

    def test_features_are_timms(self, encoder, batch):
        backbone = timm.create_model(MICRO, num_classes=0).eval()
        backbone.load_state_dict(encoder.backbone.state_dict())
        expected = backbone(encoder.normalize(batch))
        torch.testing.assert_close(encoder.features(batch), expected)

    @pytest.mark.parametrize("training", [True, False])
    def test_tokens(self, batch, training):
        """ "mean" is what timm does for distilled DeiT, in training and in evaluation."""
        torch.manual_seed(0)
        one = {
            token: Encoder.create(MICRO, weights="micro", token=token).train(training)
            for token in (None, "cls", "dist", "mean")
        }
        features = {token: encoder.features(batch) for token, encoder in one.items()}
        torch.testing.assert_close(features["mean"], features[None])
        torch.testing.assert_close(features["mean"], (features["cls"] + features["dist"]) / 2)
        assert not torch.allclose(features["cls"], features["dist"])

    def test_wrong_shape(self, encoder):
        with pytest.raises(ValueError, match=r"shape \(3, 64, 64\), expected \(B, 3, H, W\)"):
            encoder(torch.zeros(3, 64, 64))


class TestAttention:
    def test_shape_and_sum(self, encoder, batch):
        attention = encoder.attention(batch)
        assert attention.shape == (5, 4, 66)
        torch.testing.assert_close(attention.sum(2), torch.ones(5, 4))
        assert attention.min() >= 0

    def test_equals_the_attention_timm_computes(self, encoder, batch):
        layer = encoder.backbone.blocks[-1].attn
        seen = []
        hook = layer.attn_drop.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        layer.fused_attn, fused = False, layer.fused_attn
        try:
            encoder(batch)
        finally:
            hook.remove()
            layer.fused_attn = fused
        torch.testing.assert_close(encoder.attention(batch), seen[0][:, :, 0])

    def test_convolutional_network_has_none(self):
        with pytest.raises(EncoderError, match="no attention"):
            Encoder.create("test_resnet", weights=None).attention(torch.zeros(1, 3, 64, 64))


class TestWeights:
    def test_micro_is_small(self):
        encoder = Encoder.create(MICRO, weights=None)
        assert sum(p.numel() for p in encoder.parameters()) <= 3_000_000
        assert files.shipped(micro.WEIGHTS).stat().st_size <= 6_000_000

    def test_the_aviary_is_imported_for_its_own_encoder_alone(self):
        code = (
            "import sys; from sobook.encoder import Encoder\n"
            f"for name in ({TINY!r}, {MICRO!r}):\n"
            "    Encoder.create(name, weights=None)\n"
            f"    assert ('sobook.aviary.micro' in sys.modules) == (name == {MICRO!r})\n"
            "assert 'sobook.data' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_pretrained_is_bundled_for_micro(self):
        first, second = (Encoder.create(MICRO, weights=w) for w in ("micro", "pretrained"))
        assert first.fingerprint() == second.fingerprint()

    @pytest.mark.parametrize("kind", ["pth", "nested.pth", "safetensors"])
    def test_file(self, tmp_path, kind):
        source = timm.create_model(TINY, num_classes=10)
        file = tmp_path / f"weights.{kind}"
        state = source.state_dict()
        if kind == "safetensors":
            save_file(state, file)
        else:
            torch.save({"model": state} if "nested" in kind else state, file)
        encoder = Encoder.create(TINY, weights=file)
        for key, value in encoder.backbone.state_dict().items():
            torch.testing.assert_close(value, state[key])

    @pytest.mark.parametrize("name", [TINY, MICRO])
    def test_positions_are_resampled_for_another_size(self, tmp_path, name):
        source = Encoder.create(name, weights=None).backbone
        torch.save(source.state_dict(), tmp_path / "w.pth")
        encoder = Encoder.create(name, weights=tmp_path / "w.pth", image_size=96)
        prefix = source.num_prefix_tokens
        expected = resample_abs_pos_embed(
            source.pos_embed, list(encoder.backbone.patch_embed.grid_size), num_prefix_tokens=prefix
        )
        torch.testing.assert_close(encoder.backbone.pos_embed, expected)
        assert encoder(torch.zeros(1, 3, 96, 96)).shape == (1, encoder.num_features)

    def test_real_deit(self, shared_weights):
        encoder = Encoder.create(
            "deit_tiny_patch16_224",
            weights=shared_weights / "deit_tiny_patch16_224.pth",
            image_size=128,
        )
        assert encoder.num_features == 192 and encoder.image_size == 128

    def test_another_architecture_says_what_differs(self, tmp_path):
        torch.save(timm.create_model(TINY, num_classes=0).state_dict(), tmp_path / "w.pth")
        with pytest.raises(EncoderError, match=r"micro.* cannot be made .*w\.pth.*belong"):
            Encoder.create(MICRO, weights=tmp_path / "w.pth")

    def test_no_network_names_the_alternatives(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path))

        def offline(*args, **kwargs):
            raise OSError("Network is unreachable")

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(EncoderError, match="unreachable.*local file.*micro"):
            Encoder.create("deit_tiny_patch16_224")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "deit_smal_patch16_224"}, "unknown encoder.*deit_small_patch16_224"),
            ({"name": "deit_micro_patch8_46"}, f"Did you mean '{MICRO}'"),
            ({"name": TINY, "weights": "micro"}, "weights='micro' belong to"),
            ({"name": MICRO, "weights": "/no/such.pth"}, "no weights file '/no/such.pth'"),
            ({"name": MICRO, "weights": "mikro"}, "Did you mean 'micro'"),
            ({"name": MICRO, "token": "clss"}, "unknown token.*Did you mean 'cls'"),
            ({"name": TINY, "token": "dist", "weights": None}, "no 'dist' token"),
            ({"name": MICRO, "dim": 0}, "dim is 0"),
            ({"name": MICRO, "image_size": 60, "weights": None}, "60 pixels.*patch size, 8"),
            ({"name": MICRO, "image_size": 0, "weights": None}, "positive image size"),
            ({"name": "test_resnet", "image_size": 60, "weights": None}, "image_size 60"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(SobookError, match=message):
            Encoder.create(**arguments)

    @pytest.mark.parametrize("content", [b"no weights", None])
    def test_unreadable_file(self, tmp_path, content):
        file = tmp_path / "w.pth"
        if content is None:
            torch.save([1, 2], file)
        else:
            file.write_bytes(content)
        with pytest.raises(EncoderError, match="cannot be made with weights .*w.pth"):
            Encoder.create(MICRO, weights=file)
