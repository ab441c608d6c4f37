"""The encoder: weights, tokens, attention."""

import subprocess
import sys

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from sobook import files
from sobook.course.aviary import micro
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
            f"    assert ('sobook.course.aviary.micro' in sys.modules) == (name == {MICRO!r})\n"
            "assert 'sobook.data' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_pretrained_is_bundled_for_micro(self):
        first, second = (Encoder.create(MICRO, weights=w) for w in ("micro", "pretrained"))
        assert first.fingerprint() == second.fingerprint()

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
            ({"name": MICRO, "image_size": 0, "weights": None}, "image_size is 0: give 1 to 4096"),
            ({"name": "resnet18", "image_size": 10**6, "weights": None}, "image_size is 1000000"),
            (
                {"name": "test_convnext", "image_size": 2, "weights": None},
                "color images of 2 pixels: its own is 160",
            ),
            ({"name": "test_vit", "weights": "pretrained.pt"}, "Did you mean 'pretrained'"),
            (
                {"name": "vit_small_patch16_18x2_224"},
                "no pretrained weights of vit_small_patch16_18",
            ),
            (
                {"name": "vit_pwee_patch16_reg1_gap_256", "token": "cls", "weights": None},
                "no 'cls'",
            ),
            ({"name": "test_vit2", "token": "dist", "weights": None}, "no 'dist' token"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(SobookError, match=message):
            Encoder.create(**arguments)

    # The last is a transformer, whose patches overlap: 72 is no multiple of their 7 pixels.
    @pytest.mark.parametrize(
        "name", ["test_resnet", "test_convnext", "test_efficientnet", "pvt_v2_b0"]
    )
    def test_networks_of_convolutions_take_any_size(self, name):
        encoder = Encoder.create(name, weights=None, image_size=72).eval()
        images = torch.randint(0, 256, (2, 3, 72, 72), dtype=torch.uint8)
        features = timm.create_model(name, num_classes=0).eval()
        features.load_state_dict(encoder.backbone.state_dict())
        assert encoder.image_size == 72
        torch.testing.assert_close(encoder.features(images), features(encoder.normalize(images)))

    @pytest.mark.parametrize(
        ("name", "features"),
        [
            ("mobilenetv3_small_050", 1024),  # its num_features, 288, are those before the pooling
            ("test_byobnet", 256),
            ("test_vit3", 96),
            ("xcit_nano_12_p16_224", 128),  # its patch size is a plain number
        ],
    )
    def test_the_size_of_the_feature_is_measured(self, name, features):
        encoder = Encoder.create(name, dim=8, weights=None).eval()
        side = encoder.image_size
        assert encoder.num_features == encoder.features(torch.zeros(1, 3, side, side)).shape[1]
        assert encoder.num_features == features
        assert encoder(torch.zeros(1, 3, side, side)).shape == (1, 8)

    def test_fingerprint_of_a_network_with_batch_norm(self):
        """Its counters of batches are single whole numbers."""
        one, other = (Encoder.create("test_resnet", weights=None) for _ in range(2))
        assert one.fingerprint() != other.fingerprint()
        other.load_state_dict(one.state_dict())
        assert one.fingerprint() == other.fingerprint()
        other.backbone.bn1.num_batches_tracked += 1
        assert one.fingerprint() != other.fingerprint()

    def test_making_one_leaves_no_trace_in_it(self):
        """The size of the feature is found by trying; norms stay as they were."""
        torch.manual_seed(0)
        encoder = Encoder.create("test_resnet", dim=8, weights=None)
        after = torch.rand(1)
        torch.manual_seed(0)
        backbone = timm.create_model("test_resnet", num_classes=0)
        nn.init.orthogonal_(nn.Linear(backbone.num_features, 8).weight)
        assert encoder.training and torch.rand(1) == after
        for key, value in encoder.backbone.state_dict().items():
            assert torch.equal(value, backbone.state_dict()[key])
