"""`deit_micro_patch8_64`: a DeiT small enough to be fine-tuned on a laptop, registered with timm.

A distilled DeiT (class and distillation token) for 64 × 64 images in patches of 8 × 8. How its
weights were made, and on what, is told in ``data/deit_micro_patch8_64.md``.
"""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import checkpoint_filter_fn

NAME = "deit_micro_patch8_64"
WEIGHTS = f"{NAME}.safetensors"

default_cfgs = generate_default_cfgs(
    {
        f"{NAME}.aviary": {
            "num_classes": 0,
            "input_size": (3, 64, 64),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": ("head", "head_dist"),
        }
    }
)


@register_model
def deit_micro_patch8_64(pretrained: bool = False, **kwargs) -> VisionTransformerDistilled:
    """DeiT micro: 128 features, 6 blocks, 4 heads, 1.2 M parameters."""
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4}
    return build_model_with_cfg(
        VisionTransformerDistilled,
        NAME,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**shape, **kwargs},
    )
