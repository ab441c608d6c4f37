"""What a config accepts, and which settings make a run another one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from sobook import files
from sobook.data import benchmarks
from sobook.data.loader import batch_plan
from sobook.errors import SobookError
from sobook.training import config as configs
from sobook.training.config import TrainConfig, identity, run_key
from sobook.training.heads import HeadConfig


class TestIdentity:
    def test_it_depends_on_what_shapes_the_result_alone(self):
        base = TrainConfig()
        where = {"root": "/elsewhere", "device": "cpu", "workers": 2, "run_dir": "here"}
        assert run_key(base) == run_key(base.replace(**where))
        changed = [("lr", 1e-5), ("dim", 64), ("options", {"seed": 1}), ("threshold", 0.2)]
        keys = {run_key(base.replace(**{name: value})) for name, value in changed}
        assert len(keys | {run_key(base)}) == 5

    def test_whole_numbers_and_floats_are_the_same(self):
        one, other = TrainConfig(so_weight=100), TrainConfig(so_weight=100.0)
        assert one == other and run_key(one) == run_key(other)

    def test_numbers_of_numpy_and_paths_are_the_same(self):
        """Settings drawn with NumPy could not be written to config.json."""
        drawn = TrainConfig(
            root=Path("here"),
            seed=np.int64(1),
            lr=np.float32(0.1),
            allow_partial=np.bool_(True),
            encoder=np.str_("deit_tiny_patch16_224"),
            options={"species": np.int32(8)},
        )
        typed = TrainConfig(
            root="here",
            seed=1,
            lr=0.1,
            allow_partial=True,
            encoder="deit_tiny_patch16_224",
            options={"species": 8},
        )
        assert drawn == typed and run_key(drawn) == run_key(typed)
        assert json.dumps(drawn.to_dict()) == json.dumps(typed.to_dict())

    def test_a_default_that_changes_is_another_run(self, monkeypatch):
        """Keys of studies held only what differed from the defaults: results outlived those."""
        before = run_key(TrainConfig())
        assert identity(TrainConfig())["margin"] == 0.1  # defaults are part of it
        monkeypatch.setattr(configs, "SCHEMA", configs.SCHEMA + 1)
        assert run_key(TrainConfig()) != before

    @pytest.mark.parametrize("kind", [TrainConfig, HeadConfig])
    def test_every_field_with_its_default_is_part_of_the_name_of_a_run(self, kind):
        """But those that say where data lie and how a run computes; so no default hides."""
        fields = {field.name: field for field in dataclasses.fields(kind)}
        shaping = set(fields) - set(configs._NOT_IDENTITY)
        assert shaping <= set(identity(kind()))
        keys = {run_key(kind())}
        numbers = {"seed", "epochs", "batch_size", "margin", "scale", "dim"}
        assert numbers <= shaping
        for name in numbers:
            default = (fields[name].type, fields[name].default * 2 or 1)
            changed = dataclasses.make_dataclass(
                kind.__name__, [(name, *default)], bases=(kind,), frozen=True
            )
            keys.add(run_key(changed()))
        assert len(keys) == 1 + len(numbers)  # each of them is another run

    def test_pictures_of_ones_own_are_known_by_content(self, tmp_path):
        for name in ("here", "there"):
            (tmp_path / name / "wren").mkdir(parents=True)
            (tmp_path / name / "wren" / "1.png").write_bytes(b"picture")
        here, there = (
            TrainConfig(dataset="folder", root=tmp_path / name) for name in ("here", "there")
        )
        assert run_key(here) == run_key(there)
        (tmp_path / "there" / "wren" / "2.png").write_bytes(b"another")
        assert run_key(here) != run_key(there)


class TestConfig:
    def test_round_trip(self, config):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_folder_name_depends_on_what_changes_the_result_alone(self):
        base = TrainConfig()
        assert base.folder() == base.replace(workers=2, device="cpu").folder()
        assert base.folder() != base.replace(lr=1e-5).folder()
        assert "pa-seed0" in base.folder().name
        assert base.replace(encoder="hf-hub:timm/x").folder().parent == base.folder().parent
        assert "so100-seed2" in base.replace(so_weight=100, seed=2).folder().name

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"epochs": 0}, "epochs is 0: it must be between 1 and 9,999"),
            ({"epochs": 10**9}, "epochs is 1000000000: it must be between 1 and 9,999"),
            ({"epochs": "8"}, "epochs is '8': it must be a whole number"),
            ({"dim": "none"}, "dim is 'none': it must be a whole number or None"),
            ({"dim": 10**7}, "dim is 10000000: it must be between 1 and 65,536"),
            ({"dim": 0}, "dim is 0"),
            ({"image_size": 5000}, "image_size is 5000: it must be between 1 and 4,096"),
            ({"workers": 10**9}, "workers is 1000000000"),
            ({"seed": -1}, "seed is -1"),
            ({"seed": 2**64}, "seed is 18446744073709551616"),
            ({"lr": None}, "lr is None: it must be a finite number"),
            ({"clip_norm": float("inf")}, "clip_norm is inf: it must be a finite number"),
            ({"margin": float("nan")}, "margin is nan"),
            ({"batch_size": True}, "batch_size is True: it must be a whole number"),
            ({"compile": 1}, "compile is 1: it must be True or False"),
            ({"options": {"seed": "one"}}, "options.seed is 'one'"),
            ({"dataset": "cub20"}, "unknown dataset 'cub20'.*Did you mean 'cub200'"),
            ({"token": "clss"}, "unknown token 'clss'.*Did you mean 'cls'"),
            ({"tracker": "tensorbord"}, "Did you mean 'tensorboard'"),
            ({"so_reduction": "sums"}, "Did you mean 'sum'"),
            ({"lr": -1.0}, "lr is -1.0"),
            ({"so_weight": -1.0}, "so_weight is -1.0"),
            ({"schedule": "cosin"}, "unknown schedule 'cosin'.*Did you mean 'cosine'"),
            ({"selection": "tests"}, "Did you mean 'test'"),
            ({"precision": "float8"}, "unknown precision"),
            ({"images_per_class": 1}, "images_per_class is 1"),
            ({"crop_scale": 0.0}, "crop_scale is 0.0"),
            ({"epoch": 3}, "unknown setting 'epoch'.*Did you mean 'epochs'"),
        ],
    )
    def test_bad_settings(self, changes, message):
        for make in (TrainConfig().replace, lambda **given: TrainConfig.recipe("cub200", **given)):
            with pytest.raises(SobookError, match=message):
                make(**changes)


@pytest.mark.parametrize("name", [name for name in configs.recipes() if name != "photos"])
def test_recipes_fit_the_classes_that_validation_leaves(name):
    """Those of CUB and Cars did not: 90 classes in a batch, of 80 and 78."""
    recipe = TrainConfig.recipe(name)
    official = benchmarks.cards()[recipe.dataset]["splits"]["train"]
    for fraction in (recipe.validation_fraction, 0):
        classes = official["classes"] - round(fraction * official["classes"])
        labels = np.arange(int((1 - fraction) * official["images"])) % classes
        rng = np.random.default_rng(0)
        plan = batch_plan(rng, labels, recipe.batch_size, recipe.images_per_class)
        assert plan.shape[1] == recipe.batch_size


def test_the_paper_is_a_recipe_once_its_settings_are_filled_in(tmp_path, monkeypatch):
    with pytest.raises(SobookError, match=r"fill in data/paper.toml.*encoder, dim, .*so_weight"):
        TrainConfig.recipe("paper")
    settings = files.read_toml(files.shipped("paper.toml"))
    defaults = TrainConfig().to_dict()
    file = tmp_path / "paper.toml"
    for unit_proxies in ("true", "false"):
        filled = {name: defaults.get(name) for name in settings} | {"dataset": "cub200"}
        lines = [f"{k} = {json.dumps(v)}" for k, v in filled.items() if k != "unit_proxies"]
        file.write_text("\n".join([*lines, f"unit_proxies = {unit_proxies}"]))
        monkeypatch.setattr(files, "shipped", lambda name: file)
        if unit_proxies == "true":
            recipe = TrainConfig.recipe("paper", so_weight=7)
            assert recipe == TrainConfig(dataset="cub200", so_weight=7)
        else:
            with pytest.raises(SobookError, match="unit length"):
                TrainConfig.recipe("paper")
