"""What a config accepts, and which settings make a run another one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sobook.data import benchmarks
from sobook.data.loader import batch_plan
from sobook.errors import SobookError
from sobook.training import config as configs
from sobook.training.config import TrainConfig, run_key
from sobook.training.heads import HeadConfig

WHERE = {"root": "/elsewhere", "device": "cpu", "workers": 2, "run_dir": "here", "chunk_size": 3}


class TestRunKey:
    def test_it_depends_only_on_what_shapes_the_result(self):
        base = TrainConfig()
        assert run_key(base) == run_key(base.replace(**WHERE))
        changed = [("lr", 1e-5), ("dim", 64), ("options", {"seed": 1}), ("threshold", 0.2)]
        keys = {run_key(base.replace(**{name: value})) for name, value in changed}
        assert len(keys | {run_key(base), run_key(HeadConfig())}) == 6
        assert run_key(base) == "d5fe621758f9"  # as shipped

    def test_equal_settings_of_other_types_are_the_same_run(self):
        drawn = {"root": Path("here"), "seed": np.int64(1), "lr": np.float32(0.1)}
        drawn |= {"allow_partial": np.bool_(True), "options": {"species": np.int32(8)}}
        typed = {"root": "here", "seed": 1, "lr": 0.1, "so_weight": 100.0}
        typed |= {"allow_partial": True, "options": {"species": 8}}
        one, other = TrainConfig(**drawn, so_weight=100), TrainConfig(**typed)
        assert one == other and run_key(one) == run_key(other)
        assert TrainConfig.from_dict(json.loads(json.dumps(one.to_dict()))) == other

    def test_pictures_are_known_by_content_and_class(self, tmp_path):
        for folder, (first, second) in {"a": "01", "b": "01", "c": "10"}.items():
            for name, shade in (("wren", first), ("robin", second)):
                (tmp_path / folder / name).mkdir(parents=True)
                image = Image.new("L", (8, 8), 200 * int(shade))
                image.save(tmp_path / folder / name / f"{folder}.png")
        a, b, c = (run_key(TrainConfig(dataset="folder", root=tmp_path / name)) for name in "abc")
        assert a == b != c  # the name of a file is nothing, its class is

    def test_folder_name(self):
        base = TrainConfig()
        assert base.folder() == base.replace(workers=2, device="cpu").folder()
        assert base.folder() != base.replace(lr=1e-5).folder()
        assert "so100-seed2" in base.replace(so_weight=100, seed=2).folder().name
        assert base.replace(encoder="hf-hub:timm/x").folder().parent == base.folder().parent


BAD = {
    "epochs": (0, "8"),
    "dim": ("none", 0),
    "image_size": (0,),
    "workers": (-1,),
    "seed": (-1,),
    "lr": (None, -1.0),
    "clip_norm": (float("inf"),),
    "margin": (float("nan"),),
    "batch_size": (True, 0),
    "compile": (1,),
    "options": ({"seed": "one"},),
    "so_weight": (-1.0,),
    "validation_fraction": (1.0, -0.1),
    "images_per_class": (1,),
    "crop_scale": (0.0, 1.5),
}


@pytest.mark.parametrize("name, value", [(name, v) for name, values in BAD.items() for v in values])
def test_bad_values(name, value):
    for make in (TrainConfig().replace, lambda **given: TrainConfig.recipe("cub200", **given)):
        with pytest.raises(SobookError, match=name):
            make(**{name: value})


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"dataset": "cub20"}, "cub200"),
        ({"token": "clss"}, "cls"),
        ({"tracker": "tensorbord"}, "tensorboard"),
        ({"so_reduction": "sums"}, "sum"),
        ({"schedule": "cosin"}, "cosine"),
        ({"selection": "tests"}, "test"),
        ({"epoch": 3}, "epochs"),
    ],
)
def test_near_misses(changes, meant):
    with pytest.raises(SobookError, match=f"Did you mean '{meant}'"):
        TrainConfig().replace(**changes)


@pytest.mark.parametrize("name", [name for name in configs.recipes() if name != "photos"])
def test_recipes_fit_the_classes_that_validation_leaves(name):
    recipe = TrainConfig.recipe(name)
    official = benchmarks.cards()[recipe.dataset]["splits"]["train"]
    for fraction in (recipe.validation_fraction, 0):
        classes = official["classes"] - round(fraction * official["classes"])
        labels = np.arange(int((1 - fraction) * official["images"])) % classes
        rng = np.random.default_rng(0)
        plan = batch_plan(rng, labels, recipe.batch_size, recipe.images_per_class)
        assert plan.shape[1] == recipe.batch_size
