"""The training loop: what it computes, and what it promises when it is stopped."""

import signal
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from sobook.data import image_sets, loader
from sobook.embedding import embed
from sobook.errors import ImageError, SobookError, TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training import data, loop
from sobook.training.config import TrainConfig
from sobook.training.loop import check, dry_run, evaluate_run, fit, prepare
from sobook.training.processes import Processes
from sobook.training.run import Run
from sobook.training.trainer import Trainer
from tests import processes
from tests.training.reading import assert_same_run, losses, resumes_at, weights

KILLS = 30
ALONE = Processes(torch.device("cpu"))


def prepared(config) -> tuple[data.Data, Trainer]:
    return prepare(Run.open(config), ALONE)


class TestFit:
    def test_metrics(self, finished):
        steps = [line for line in finished.metrics if line["kind"] == "step"]
        assert [line["step"] for line in steps] == list(range(9))
        assert [line["epoch"] for line in finished.epochs] == [0, 1, 2, 3]
        for line in steps:
            total = line["proxy_anchor"] + 10 * line["soft_orthogonality"]
            assert line["loss"] == pytest.approx(total, rel=1e-5)
        last = finished.epochs[-1]
        for name in ("loss", "proxy_anchor", "soft_orthogonality", "gradient_norm"):
            assert last[name] == pytest.approx(np.mean([line[name] for line in steps[-3:]]))
        assert {"rms_cosine", "coherence", "threshold", "images_per_second"} <= last.keys()

    def test_retrieval_is_that_of_the_saved_encoder(self, finished):
        recall = evaluate_run(finished.config, finished.encoder()).recall
        assert finished.retrieval["recall"] == {str(k): round(v, 6) for k, v in recall.items()}

    def test_the_seed_decides_and_workers_change_nothing(self, finished, config, tmp_path):
        assert_same_run(fit(config.replace(workers=2), progress=False).path, finished.path)
        other = fit(config.replace(run_dir=tmp_path / "other", seed=1), progress=False)
        assert other.encoder().fingerprint() != finished.encoder().fingerprint()

    def test_warm_up_leaves_the_backbone_alone(self, config, monkeypatch):
        seen = []
        step = Trainer.step

        def watching(trainer, *batch):
            parts = step(trainer, *batch)
            weight = next(trainer.model.backbone.parameters())
            seen.append((weight.requires_grad, trainer.model.head[1].weight.grad is not None))
            return parts

        monkeypatch.setattr(Trainer, "step", watching)
        fit(config.replace(epochs=2), progress=False)
        assert seen == [(False, True)] * 3 + [(True, True)] * 3

    def test_what_is_shown_and_called_after_every_epoch(self, config, capsys, monkeypatch):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        config = config.replace(selection="validation", validation_fraction=0.5, batch_size=4)
        seen = {}
        run = fit(config.replace(epochs=1), after_epoch=lambda *args: seen.update([args]))
        shown = capsys.readouterr()
        assert "validation: 12 images of 2 classes, 0" in shown.out and "K = 1, 2" in shown.out
        assert all(part in shown.err for part in ("PA ", "SO ", "R@1 ", "img"))
        assert list(seen) == [0, 1] and seen[1].fingerprint() == run.encoder().fingerprint()


class TestTrackers:
    def test_tensorboard(self, config):
        events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        run = fit(config.replace(tracker="tensorboard", epochs=2), progress=False)
        seen = events.EventAccumulator(str(run.path / "tensorboard")).Reload()
        steps = [(event.step, event.value) for event in seen.Scalars("step/loss")]
        assert steps == [(step, pytest.approx(loss)) for step, loss in losses(run.path)]
        assert [event.step for event in seen.Scalars("epoch/rms_cosine")] == [0, 3, 6]

    def test_wandb_gets_one_run_of_its_own(self, config, monkeypatch):
        wandb = MagicMock()
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        run = fit(config.replace(tracker="wandb", epochs=1), progress=False)
        started = wandb.init.return_value
        logged = started.__enter__.return_value.log.call_args_list
        assert [call.args[1] for call in logged] == [0, 0, 1, 2, 3]  # wandb drops what runs back
        assert logged[-1].args[0]["epoch/loss"] == run.epochs[-1]["loss"]
        assert started.__exit__.called  # else the next run would log into this one


class TestSettings:
    def test_they_reach_the_loss(self, config):
        settings = {"margin": 0.2, "scale": 16.0, "threshold": 0.3, "so_weight": 4.0}
        _, trainer = prepared(config.replace(**settings))
        assert {name: getattr(trainer.loss, name) for name in settings} == settings

    def test_each_parameter_has_its_rate_and_norms_and_biases_do_not_decay(self, config):
        _, trainer = prepared(config.replace(threshold_lr=0.3))
        encoder, loss = trainer.model, trainer.loss
        expected = {
            loss.threshold: (0.3, 0.0),
            loss.proxies: (config.proxy_lr, config.weight_decay),
        }
        for part, rate in ((encoder.backbone, config.lr), (encoder.head, config.head_lr)):
            for name, parameter in part.named_parameters():
                decays = not (name.endswith("bias") or "norm" in name)
                expected[parameter] = (rate, config.weight_decay if decays else 0.0)
        groups = trainer.optimizer.param_groups
        assert expected == {
            p: (group["initial_lr"], group["weight_decay"])
            for group in groups
            for p in group["params"]
        }

    def test_bfloat16_keeps_proxies_and_loss_in_float32(self, config):
        run = fit(config.replace(precision="bfloat16", epochs=1), progress=False)
        assert weights(run.path)["proxies"].dtype == torch.float32
        assert all(np.isfinite(loss) for _, loss in losses(run.path))

    @pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"chunk_size": 3}])
    def test_less_memory_changes_nothing_else(self, finished, config, changes):
        """Gradient caching is the plain gradient: the batch is compared as a whole."""
        run = fit(config.replace(**changes), progress=False)
        np.testing.assert_allclose(losses(finished.path), losses(run.path), rtol=1e-5)
        np.testing.assert_allclose(finished.proxies(-1), run.proxies(-1), atol=1e-3)  # float16

    def test_chunks_and_batch_normalization_do_not_go_together(self, config):
        with pytest.raises(SobookError, match="normalization"):
            prepared(config.replace(encoder="resnet18", weights=None, chunk_size=4))


class TestSelection:
    def test_held_out_classes_select_the_epoch_in_float32(self, config, monkeypatch):
        seen = []
        original = loop.evaluate

        def watching(embeddings, *args, **kwargs):
            seen.append(embeddings)
            return original(embeddings, *args, **kwargs)

        monkeypatch.setattr(loop, "evaluate", watching)
        monkeypatch.setattr(data, "FEWEST_TO_SELECT", 2)
        config = config.replace(
            precision="bfloat16", selection="validation", validation_fraction=0.5, batch_size=4
        )
        run = fit(config, progress=False)
        recalls = {line["epoch"]: line["recall_at_1"] for line in run.epochs}
        best = max(recalls, key=lambda epoch: (recalls[epoch], epoch))
        assert run.state["selected_epoch"] == best
        birds = image_sets.load("aviary", "train", **config.load_options)
        held_out = image_sets.hold_out(birds, 0.5, config.seed, at_least=2)[1]
        expected = embed(run.encoder(), held_out, cache=False, progress=False)
        np.testing.assert_array_equal(seen[best], expected)

    def test_on_the_test_classes_it_is_called_peeking(self, config, monkeypatch, tmp_path):
        monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
        run = fit(config.replace(selection="test", epochs=1), progress=False)
        assert "peeking" in " ".join(run.retrieval["notes"])
        # Only the kept epoch is cached.
        assert len(list((tmp_path / "cache").glob("embeddings-*.npy"))) == 1

    @pytest.mark.parametrize(
        ("fewest", "recalls", "kept", "note"),
        [
            (2, [1.0, 0.5, 1.0, 0.5], 2, "epoch 2 of 3 was kept"),
            (2, [0.5, 0.5, 1.0, 1.0], 3, "epoch 3 of 3 was kept: an earlier one"),
            (5, [1.0, 0.5, 1.0, 0.5], 3, "too few to select"),
        ],
    )
    def test_ties_and_few_classes_keep_the_later_epoch(
        self, config, monkeypatch, fewest, recalls, kept, note
    ):
        """An encoder that separates the validation classes before training is not what is kept."""
        monkeypatch.setattr(data, "FEWEST_TO_SELECT", fewest)
        following = iter(recalls)
        monkeypatch.setattr(loop, "_select", lambda *_: next(following))
        run = fit(config.replace(selection="validation", batch_size=4), progress=False)
        assert run.state["selected_epoch"] == kept
        assert [note in text for text in run.retrieval["notes"]].count(True) == 1
        assert f"epoch {kept} of 3 was kept" in "".join(run.retrieval["notes"])


def picked(config, tmp_path, counts) -> TrainConfig:
    """A folder with so many pictures per class."""
    folder = tmp_path / "mine"
    birds = image_sets.load("aviary", "train", config.root, **config.options)
    for number, count in enumerate(counts):
        (folder / f"{number:02}").mkdir(parents=True)
        for i, source in enumerate(birds.paths[:count]):
            (folder / f"{number:02}" / f"{i}.png").write_bytes(source.read_bytes() + bytes(number))
    return config.replace(dataset="folder", root=folder, options={}, batch_size=4, epochs=1)


class TestData:
    def test_ks_that_fit_are_reported(self, config, tmp_path):
        config = picked(config, tmp_path, [2] * 8)
        run = fit(config, progress=False)
        assert list(run.retrieval["recall"]) == ["1", "2", "4"]
        fewer = "no Recall@K for K = 8: a query can find fewer images"
        assert run.retrieval["notes"] == [fewer, "epoch 1 of 1 was kept"]

    def test_a_batch_is_at_most_all_training_images(self, config, tmp_path, capsys):
        config = picked(config, tmp_path, [2] * 8).replace(batch_size=40)
        run = fit(config)
        assert Run.load(run.path).config.batch_size == 8
        assert "batches of 8" in capsys.readouterr().out
        assert fit(config, progress=False).retrieval == run.retrieval

    @pytest.mark.parametrize(
        ("counts", "changes", "word"),
        [
            ([2] * 8, {"images_per_class": 2, "batch_size": 10}, "batch_size is 10"),
            ([3, 3], {}, "1 training"),
            ([3, 3, 3], {}, "1 test"),
            ([4, 4, 1, 1], {}, "test"),
            ([3, 3, 3, 3], {"selection": "validation"}, "hold out"),
            ([1] * 20, {"selection": "validation"}, "validation"),
            ([4] * 4, {"images_per_class": 2, "batch_size": 8}, "at most 4"),
        ],
    )
    def test_too_little_is_said_before_training(self, config, tmp_path, counts, changes, word):
        config = picked(config, tmp_path, counts).replace(**changes)
        for start in (fit, check, dry_run):
            with pytest.raises(SobookError, match=word):
                start(config)
        assert not config.folder().exists()

    def test_dry_run(self, config, finished):
        said = dry_run(config)
        for part in ("train: 24 images of 4 classes", "K = 1, 2, 4, 8", "9 steps", "on cpu: about"):
            assert part in said
        assert not config.folder().exists()
        assert "finished" in dry_run(finished.config)


class TestStopped:
    @pytest.mark.parametrize("moment", ["step", "checkpoint", "resume", "evaluation"])
    def test_at_any_moment_the_end_is_the_same(self, finished, config, monkeypatch, moment):
        owner, name, call = {
            "step": (Trainer, "step", 5),
            "checkpoint": (Run, "save", 3),
            "resume": (Run, "save_resume", 3),
            "evaluation": (loop, "evaluate_run", 1),
        }[moment]
        original, calls = getattr(owner, name), []

        def stopping(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(config, progress=False)
        monkeypatch.undo()
        assert_same_run(fit(config, progress=False).path, finished.path)

    def test_killed_within_an_epoch_it_resumes_there(self, config, tmp_path):
        """SIGKILL before step 4, with a checkpoint at each step: step 4 comes next, not step 3."""
        config = config.replace(checkpoint_minutes=0.0)
        process, _ = processes.start(config, at_step=(0, 4, signal.SIGKILL))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert resumes_at(config) == (2, 1)
        never = config.replace(run_dir=tmp_path / "never")
        for run in (config, never):  # bits are the same for the same number of threads only
            assert processes.run_alone(run) == 0
        assert_same_run(config.run_dir, never.run_dir)

    @pytest.mark.slow
    def test_killed_at_random_moments(self, settings, tmp_path):
        """30 SIGKILLs in any phase; each time the run is done, its bits are compared.

        Checkpoints come at every step, so that a run that is always killed early still gets on.
        """
        rng = np.random.default_rng(0)
        settings = settings.replace(selection="validation", validation_fraction=0.5, batch_size=4)
        never = settings.replace(run_dir=tmp_path / "never")
        assert processes.run_alone(never) == 0
        kills = done = 0
        while kills < KILLS or done == 0:
            folder, workers = tmp_path / f"killed-{done}", int(rng.integers(0, 3))
            run = settings.replace(run_dir=folder, workers=workers, checkpoint_minutes=0.0)
            process, _ = processes.start(run)
            if processes.killed_at(process, rng.uniform(0.05, 1.5) if kills < KILLS else 120):
                kills += 1
                continue
            assert_same_run(folder, never.run_dir)
            done += 1

    @pytest.mark.parametrize("error", ["(?i)nan", "x.jpg"])
    def test_an_error_leaves_the_last_checkpoint(self, config, monkeypatch, error):
        original = loader.TrainingBatches.cut

        def failing(batches, number, drawn):
            pictures, labels = original(batches, number, drawn)
            if batches.seed[1] == 2 and number == 1:
                if error == "x.jpg":
                    raise ImageError("image x.jpg cannot be read")
                pictures = pictures.float()
                pictures[3, 0, 5, 5] = torch.nan
            return pictures, labels

        monkeypatch.setattr(loader.TrainingBatches, "cut", failing)
        with pytest.raises(SobookError, match=error):
            fit(config.replace(workers=2), progress=False)
        assert resumes_at(config) == (2, 0)
        monkeypatch.undo()
        assert fit(config, progress=False).finished

    def test_a_nan_in_the_gradient(self, config, monkeypatch):
        parts = SoftOrthogonalProxyAnchor.parts

        def rough(self, embeddings, labels):
            values = parts(self, embeddings, labels)
            return {**values, "loss": values["loss"] + (self.proxies[0, 0] * 0).square().sqrt()}

        monkeypatch.setattr(SoftOrthogonalProxyAnchor, "parts", rough)
        with pytest.raises(TrainingError, match="gradient became nan at step 0"):
            fit(config, progress=False)
