"""The training loop, its run folder, and its config."""

import json
import math
import shutil

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from sobook.data import image_sets
from sobook.embedding import embed
from sobook.errors import RunError, SobookError, TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training import config as configs, distributed, loop as training, run_folder
from sobook.training.config import TrainConfig, identity, run_key
from sobook.training.loop import Trainer, fit
from sobook.training.run_folder import Run


@pytest.fixture
def config(tiny_aviary, tiny_options, tmp_path):
    """Four training species, batches of 8, two epochs: a second or two."""
    return TrainConfig(
        root=tiny_aviary,
        options=tiny_options,
        dim=16,
        epochs=2,
        batch_size=8,
        selection="last",
        so_weight=10.0,
        run_dir=tmp_path / "run",
    )


@pytest.fixture
def finished(config):
    return fit(config, progress=False)


class TestFit:
    def test_run_folder(self, finished, config):
        names = {file.name for file in finished.path.iterdir()}
        assert names - {".lock"} == {  # which some systems remove, and some keep
            "config.json",
            "metrics.jsonl",
            "proxies.safetensors",
            "checkpoint.safetensors",
            "state.json",
            "retrieval.json",
        }
        assert finished.finished and Run.load(finished.path).config == config

    def test_metrics(self, finished):
        steps = [line for line in finished.metrics if line["kind"] == "step"]
        assert [line["step"] for line in steps] == [0, 1, 2, 3, 4, 5]
        assert [line["epoch"] for line in finished.epochs] == [0, 1, 2]
        for line in steps:
            total = line["proxy_anchor"] + 10 * line["soft_orthogonality"]
            assert line["loss"] == pytest.approx(total, rel=1e-5)

    def test_proxies_of_every_epoch(self, finished):
        start, last = finished.proxies(0), finished.proxies(2)
        assert start.shape == (4, 16) and start.dtype == torch.float32
        assert not torch.allclose(start, last)
        torch.testing.assert_close(finished.proxies(), last)
        torch.testing.assert_close(finished.proxies(-1), last)
        with pytest.raises(RunError, match="no proxies of epoch 3: give 0..2"):
            finished.proxies(3)

    def test_retrieval_is_that_of_the_saved_encoder(self, finished, config):
        recall = training.evaluate_run(config, finished.encoder()).recall
        assert finished.retrieval["recall"] == {str(k): round(v, 6) for k, v in recall.items()}

    def test_same_seed_same_weights_other_seed_others(self, finished, config, tmp_path):
        again = fit(config.replace(run_dir=tmp_path / "again"), progress=False)
        other = fit(config.replace(run_dir=tmp_path / "other", seed=1), progress=False)
        assert again.encoder().fingerprint() == finished.encoder().fingerprint()
        torch.testing.assert_close(again.proxies(2), finished.proxies(2), rtol=0, atol=0)
        assert other.encoder().fingerprint() != finished.encoder().fingerprint()

    def test_workers_change_nothing(self, finished, config, tmp_path):
        two = fit(config.replace(run_dir=tmp_path / "two", workers=2), progress=False)
        assert two.encoder().fingerprint() == finished.encoder().fingerprint()

    def test_finished_run_is_opened_not_repeated(self, finished, config, monkeypatch):
        monkeypatch.setattr(training, "FineTuning", None)
        assert fit(config, progress=False).retrieval == finished.retrieval

    @pytest.mark.parametrize("moment", ["batch", "checkpoint", "resume", "evaluation"])
    def test_stopped_and_continued_is_never_stopped(
        self, finished, config, tmp_path, monkeypatch, moment
    ):
        """Stop in the second epoch, at four moments; the end is bit-identical."""
        config = config.replace(run_dir=tmp_path / "stopped")
        self._stop_at(moment, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
        monkeypatch.undo()
        continued = fit(config, progress=False)
        assert continued.encoder().fingerprint() == finished.encoder().fingerprint()
        for epoch in range(3):
            assert torch.equal(continued.proxies(epoch), finished.proxies(epoch))
        losses = [
            [m["loss"] for m in r.metrics if m["kind"] == "step"] for r in (continued, finished)
        ]
        assert losses[0] == losses[1]

    @staticmethod
    def _stop_at(moment, monkeypatch):
        owner, name, call = {
            "batch": (Trainer, "step", 5),
            "checkpoint": (training.FineTuning, "_write_checkpoint", 3),
            "resume": (training.FineTuning, "_save", 3),
            "evaluation": (training, "evaluate_run", 1),
        }[moment]
        original, calls = getattr(owner, name), []

        def stopping(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, stopping)

    def test_warm_up_leaves_the_backbone_alone(self, config, monkeypatch):
        seen = []
        step = Trainer.step

        def watching(trainer, *batch):
            parts = step(trainer, *batch)
            weight = next(trainer.model.backbone.parameters())
            seen.append((weight.requires_grad, trainer.model.head[1].weight.grad is not None))
            return parts

        monkeypatch.setattr(Trainer, "step", watching)
        fit(config, progress=False)
        assert seen == [(False, True)] * 3 + [(True, True)] * 3

    @pytest.mark.parametrize("field", ["margin", "scale", "threshold", "so_weight"])
    def test_settings_reach_the_loss(self, config, field):
        config = config.replace(**{field: 0.25})
        training_run = training.FineTuning(Run(config.folder(), config), distributed.join(config))
        assert getattr(training_run.loss, field) == 0.25

    def test_not_a_number_stops_the_run(self, config, monkeypatch):
        parts = SoftOrthogonalProxyAnchor.parts

        def broken(self, embeddings, labels):
            return {
                name: value * math.nan for name, value in parts(self, embeddings, labels).items()
            }

        monkeypatch.setattr(SoftOrthogonalProxyAnchor, "parts", broken)
        with pytest.raises(
            TrainingError, match="proxy_anchor became nan at step 0.*learning rates"
        ):
            fit(config, progress=False)

    def test_held_out_classes_choose_the_epoch(self, config):
        config = config.replace(selection="validation", validation_fraction=0.5, batch_size=4)
        run = fit(config, progress=False)
        recalls = {line["epoch"]: line["recall_at_1"] for line in run.epochs}
        best = max(recalls, key=lambda epoch: (recalls[epoch], -epoch))
        assert run.state["selected_epoch"] == best
        assert run.proxies().shape == (2, 16)

    def test_choosing_on_the_test_classes_is_called_peeking(self, config, monkeypatch, tmp_path):
        monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
        run = fit(config.replace(selection="test"), progress=False)
        assert "peeking" in run.retrieval["notes"][0]
        # Of the kept epoch alone; there used to be one of every epoch.
        assert len(list((tmp_path / "cache").glob("embeddings-*.npy"))) == 1


class TestParameterGroups:
    def test_each_part_has_its_own_rate(self, config):
        start = training.FineTuning(Run(config.folder(), config), distributed.join(config))
        groups = start.trainer.optimizer.param_groups
        rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
        parts = [(start.encoder.backbone, config.lr), (start.encoder.head, config.head_lr)]
        for module, rate in [*parts, (start.loss, config.proxy_lr)]:
            assert {rates.pop(id(p)) for p in module.parameters()} == {rate}
        assert not rates

    def test_norms_and_biases_do_not_decay(self, config):
        start = training.FineTuning(Run(config.folder(), config), distributed.join(config))
        groups = start.trainer.optimizer.param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        named = [*start.encoder.named_parameters(), *start.loss.named_parameters()]
        without = {name for name, p in named if decays[id(p)] == 0}
        assert without == {name for name, p in named if name.endswith("bias") or "norm" in name}
        assert decays[id(start.loss.proxies)] == config.weight_decay


class TestSelection:
    def test_the_epoch_is_chosen_in_the_precision_of_the_report(self, config, monkeypatch):
        """Trained in bfloat16, it was chosen in bfloat16 and reported in float32."""
        seen = []
        original = training.evaluate

        def watching(embeddings, *args, **kwargs):
            seen.append(embeddings)
            return original(embeddings, *args, **kwargs)

        monkeypatch.setattr(training, "evaluate", watching)
        config = config.replace(
            precision="bfloat16", selection="validation", validation_fraction=0.5, batch_size=4
        )
        run = fit(config, progress=False)
        birds = image_sets.load("aviary", "train", **config.load_options)
        held_out = image_sets.hold_out(birds, 0.5, config.seed, at_least=2)[1]
        expected = embed(run.encoder(), held_out, cache=False, progress=False)
        np.testing.assert_array_equal(seen[run.state["selected_epoch"]], expected)


class TestOneProcess:
    def test_one_precision_after_another(self, config, tmp_path):
        for precision in ("float32", "bfloat16", "float32"):
            changed = config.replace(precision=precision, run_dir=tmp_path / "again", epochs=1)
            assert fit(changed, progress=False).finished
            shutil.rmtree(tmp_path / "again")

    def test_the_callers_accelerator_is_left_alone(self, config):
        accelerate.Accelerator(cpu=True, mixed_precision="bf16")
        try:
            fit(config.replace(epochs=1), progress=False)
            assert accelerate.Accelerator().mixed_precision == "bf16"
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)  # for the other tests

    def test_a_device_that_is_not_there(self, config):
        with pytest.raises(SobookError, match="device is 'xpu:7', but cannot be used here"):
            fit(config.replace(device="xpu:7"), progress=False)
        assert not config.folder().exists()


class TestRunFolder:
    def test_other_settings_are_refused_with_the_differences(self, finished, config):
        with pytest.raises(RunError, match=r"other settings \(so_weight: 10.0 → 3.0\)"):
            fit(config.replace(so_weight=3.0), progress=False)

    def test_not_a_run(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(RunError, match="not a run folder.*no config.json"):
                Run.load(path)

    def test_foreign_folder_is_not_written_into(self, config, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("precious")
        with pytest.raises(RunError, match="not empty and not a run folder"):
            fit(config, progress=False)

    def test_few_classes_hold_out_two(self, config):
        """A fifth of four classes is one, and with one class every answer is right."""
        run = fit(config.replace(selection="validation", batch_size=4), progress=False)
        assert len(run.state["class_names"]) == 2
        assert "recall_at_1" in run.epochs[-1]

    def test_too_few_classes_to_hold_some_out(self, config, tmp_path):
        birds = image_sets.load("aviary", "train", config.root, **config.options)
        for source in birds.paths:  # of four species: two will train
            target = tmp_path / "mine" / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        few = config.replace(
            dataset="folder", root=tmp_path / "mine", options={}, selection="validation"
        )
        with pytest.raises(ValueError, match="too few to hold out.*--selection last"):
            fit(few, progress=False)
        assert not few.folder().exists()

    def test_settings_that_cannot_work_leave_no_folder(self, config):
        with pytest.raises(ValueError, match="batch_size is 500"):
            fit(config.replace(batch_size=500), progress=False)
        assert not config.folder().exists()

    def test_unfinished_run_says_so(self, config):
        run = run_folder.create(config)
        with pytest.raises(RunError, match="no retrieval.json: the run is not finished"):
            run.retrieval  # noqa: B018

    def test_damaged_json(self, finished):
        (finished.path / "config.json").write_text("{")
        with pytest.raises(RunError, match="not valid JSON"):
            Run.load(finished.path)


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

    def test_a_default_that_changes_is_another_run(self, monkeypatch):
        """Keys of studies held only what differed from the defaults: results outlived those."""
        before = run_key(TrainConfig())
        assert identity(TrainConfig())["margin"] == 0.1  # defaults are part of it
        monkeypatch.setattr(configs, "SCHEMA", configs.SCHEMA + 1)
        assert run_key(TrainConfig()) != before

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

    def test_a_run_on_pictures_that_changed_is_not_reopened(self, tmp_path):
        (tmp_path / "mine").mkdir()
        config = TrainConfig(dataset="folder", root=tmp_path / "mine", run_dir=tmp_path / "run")
        run_folder.create(config)
        (tmp_path / "mine" / "new.png").write_bytes(b"picture")
        with pytest.raises(RunError, match="pictures that have changed since"):
            run_folder.find(config)

    def test_pictures_that_moved_are_the_same_run(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "1.png").write_bytes(b"picture")
        config = TrainConfig(dataset="folder", root=tmp_path / "mine", run_dir=tmp_path / "run")
        run_folder.create(config)
        (tmp_path / "mine").rename(tmp_path / "moved")
        assert run_folder.find(config.replace(root=tmp_path / "moved"))

    def test_a_run_of_another_version_is_not_reopened(self, finished, config, monkeypatch):
        monkeypatch.setattr(configs, "SCHEMA", configs.SCHEMA + 1)
        with pytest.raises(RunError, match="another version of sobook"):
            fit(config, progress=False)

    def test_moved_data_train_nothing_anew(self, finished, config, monkeypatch):
        monkeypatch.setattr(training, "FineTuning", None)
        assert fit(config.replace(root="/moved"), progress=False).finished


class TestConfig:
    def test_round_trip(self, config):
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_folder_name_depends_on_what_changes_the_result_alone(self):
        base = TrainConfig()
        assert base.folder() == base.replace(workers=2, device="cpu").folder()
        assert base.folder() != base.replace(lr=1e-5).folder()
        assert "pa-seed0" in base.folder().name
        assert "so100-seed2" in base.replace(so_weight=100, seed=2).folder().name

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"epochs": 0}, "epochs is 0"),
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
        with pytest.raises(ValueError, match=message):
            TrainConfig().replace(**changes)
