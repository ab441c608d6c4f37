"""The training loop: what it computes, and what it promises when it is stopped."""

import signal
import sys

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

    def test_after_epoch_sees_every_epoch(self, config):
        seen = {}
        run = fit(config, progress=False, after_epoch=lambda e, x: seen.update({e: x}))
        assert list(seen) == [0, 1, 2, 3]
        assert seen[3].fingerprint() == run.encoder().fingerprint()

    def test_what_is_shown(self, config, capsys, monkeypatch):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        fit(config.replace(selection="validation", validation_fraction=0.5, batch_size=4, epochs=1))
        shown = capsys.readouterr()
        assert "validation: 12 images of 2 classes, 0" in shown.out and "K = 1, 2" in shown.out
        for part in ("PA ", "SO ", "R@1 ", "img"):
            assert part in shown.err

    def test_trackers(self, config):
        pytest.importorskip("tensorboard")
        run = fit(config.replace(tracker="tensorboard", epochs=1), progress=False)
        assert list(run.path.rglob("events.out.tfevents*"))

    def test_a_tracker_that_is_not_installed(self, config, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(ImportError, match="wandb"):
            fit(config.replace(tracker="wandb"), progress=False)


class TestSettings:
    @pytest.mark.parametrize("field", ["margin", "scale", "threshold", "so_weight"])
    def test_they_reach_the_loss(self, config, field):
        _, trainer = prepared(config.replace(**{field: 0.25}))
        assert getattr(trainer.loss, field) == 0.25

    def test_each_part_has_its_own_rate(self, config):
        _, trainer = prepared(config)
        groups = trainer.optimizer.param_groups
        rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
        encoder = trainer.model
        parts = [(encoder.backbone, config.lr), (encoder.head, config.head_lr)]
        for module, rate in [*parts, (trainer.loss, config.proxy_lr)]:
            assert {rates.pop(id(p)) for p in module.parameters()} == {rate}
        assert not rates

    def test_norms_and_biases_do_not_decay(self, config):
        _, trainer = prepared(config)
        groups = trainer.optimizer.param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        named = [*trainer.model.named_parameters(), *trainer.loss.named_parameters()]
        without = {name for name, p in named if decays[id(p)] == 0}
        assert without == {name for name, p in named if name.endswith("bias") or "norm" in name}
        assert decays[id(trainer.loss.proxies)] == config.weight_decay

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

    @pytest.mark.parametrize(("fewest", "kept"), [(2, 2), (5, 3)])
    def test_ties_and_few_classes_keep_the_later_epoch(self, config, monkeypatch, fewest, kept):
        """An encoder that separates the validation classes before training is not what is kept."""
        monkeypatch.setattr(data, "FEWEST_TO_SELECT", fewest)
        recalls = iter([1.0, 0.5, 1.0, 0.5])
        monkeypatch.setattr(loop, "_select", lambda *_: next(recalls))
        run = fit(config.replace(selection="validation", batch_size=4, epochs=3), progress=False)
        assert run.state["selected_epoch"] == kept
        notes = " ".join(run.retrieval["notes"])
        assert f"epoch {kept} of 3 was kept" in notes and ("too few" in notes) == (fewest == 5)

    def test_a_tie_of_the_last_epoch_is_said(self, config, monkeypatch):
        monkeypatch.setattr(data, "FEWEST_TO_SELECT", 2)
        monkeypatch.setattr(loop, "_select", lambda *_: 1.0)
        run = fit(config.replace(selection="validation", batch_size=4, epochs=1), progress=False)
        assert run.retrieval["notes"][0].startswith("epoch 1 of 1 was kept: an earlier one")


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
        assert (
            Run.load(run.path).config.batch_size == 8 and "batches of 8" in capsys.readouterr().out
        )
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

    def test_a_nan_in_a_batch_leaves_the_last_checkpoint(self, config, monkeypatch):
        original = loader.TrainingBatches.cut

        def poisoned(batches, number, drawn):
            pictures, labels = original(batches, number, drawn)
            if batches.seed[1] == 2 and number == 1:
                pictures = pictures.float()
                pictures[3, 0, 5, 5] = torch.nan
            return pictures, labels

        monkeypatch.setattr(loader.TrainingBatches, "cut", poisoned)
        with pytest.raises(SobookError, match="(?i)nan"):
            fit(config, progress=False)
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

    def test_an_error_in_a_worker_ends_the_run(self, config, monkeypatch):
        original = loader.TrainingBatches.cut

        def failing(batches, number, drawn):
            if batches.seed[1] == 2:
                raise ImageError("image x.jpg cannot be read")
            return original(batches, number, drawn)

        monkeypatch.setattr(loader.TrainingBatches, "cut", failing)
        with pytest.raises(ImageError, match="x.jpg"):
            fit(config.replace(workers=2), progress=False)
        assert resumes_at(config) == (2, 0)
