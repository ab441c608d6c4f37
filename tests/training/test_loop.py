"""The training loop: what it computes, what it tells, and what it promises when things go wrong.

Killed at any moment a run ends with the same bits; NaN or an error in a batch end it with one
sentence and leave the last checkpoint whole.
"""

import math
import signal
import sys

import numpy as np
import pytest
import torch

from sobook.data import image_sets, loader, pixels
from sobook.embedding import embed
from sobook.errors import RunError, SobookError, TrainingError
from sobook.losses import SoftOrthogonalProxyAnchor
from sobook.training import loop as training, processes as distributed
from sobook.training.loop import Trainer, fit
from sobook.training.run import Run
from tests import processes
from tests.training.reading import (
    assert_same_bits,
    assert_same_proxies,
    losses,
    resumes_at,
    weights,
)

KILLS = 30


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


class TestKilled:
    @pytest.mark.slow
    def test_at_random_moments(self, settings, tmp_path):
        """30 SIGKILLs in any phase; each time the run is done, its bits are compared.

        With workers or without: the number changes from start to start. Checkpoints come at every
        step, so that a run that is always killed early still gets on.
        """
        rng = np.random.default_rng(0)
        settings = settings.replace(selection="validation", validation_fraction=0.5, batch_size=4)
        never = settings.replace(run_dir=tmp_path / "never")
        assert processes.run_alone(never) == 0
        kills = finished = 0
        while kills < KILLS or finished == 0:
            run = settings.replace(
                run_dir=tmp_path / f"killed-{finished}",
                workers=int(rng.integers(0, 3)),
                checkpoint_minutes=0.0,
            )
            process, _ = processes.start(run)
            process.join(rng.uniform(0.05, 1.5) if kills < KILLS else 120)
            if process.exitcode is None:
                process.kill()
                process.join()
                kills += 1
                continue
            assert process.exitcode == 0
            assert_same_bits(run.run_dir, never.run_dir)
            assert losses(run.run_dir) == losses(never.run_dir)
            assert_same_proxies(run.run_dir, never.run_dir)
            finished += 1
        assert kills >= KILLS

    def test_within_an_epoch_it_resumes_at_the_last_checkpoint(self, long_config, tmp_path):
        """Killed before step 4 with a checkpoint at each step: step 4 comes next, not step 3."""
        config = long_config.replace(checkpoint_minutes=0.0)
        process, _ = processes.start(config, at_step=(0, 4, signal.SIGKILL))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert resumes_at(config) == (2, 1)
        never = config.replace(run_dir=tmp_path / "never")
        for run in (config, never):  # bits are the same for the same number of threads only
            assert processes.run_alone(run) == 0
        assert [step for step, _ in losses(config.run_dir)] == list(range(9))
        assert losses(config.run_dir) == losses(never.run_dir)
        assert_same_bits(config.run_dir, never.run_dir)
        assert_same_proxies(config.run_dir, never.run_dir)


class TestNotANumber:
    def test_in_a_batch(self, long_config, monkeypatch):
        """NaN pictures at step 4: the step, the part and the last checkpoint are named."""
        original = loader.TrainingBatches.cut

        def poisoned(batches, number, drawn):
            pictures, labels = original(batches, number, drawn)
            if batches.seed[1] == 2 and number == 1:
                pictures = pictures.float()
                pictures[3, 0, 5, 5] = torch.nan
            return pictures, labels

        monkeypatch.setattr(loader.TrainingBatches, "cut", poisoned)
        with pytest.raises(TrainingError, match="an embedding became nan at step 4") as caught:
            fit(long_config, progress=False)
        assert str(long_config.folder() / "resume.safetensors") in str(caught.value)
        assert resumes_at(long_config) == (2, 0)
        monkeypatch.undo()
        assert fit(long_config, progress=False).finished  # the checkpoint it names is good

    def test_in_the_gradient(self, long_config, monkeypatch):
        """A loss that is a number with a gradient that is none."""
        parts = SoftOrthogonalProxyAnchor.parts

        def rough(self, embeddings, labels):
            found = parts(self, embeddings, labels)
            return {**found, "loss": found["loss"] + (self.proxies[0, 0] * 0).square().sqrt()}

        monkeypatch.setattr(SoftOrthogonalProxyAnchor, "parts", rough)
        with pytest.raises(TrainingError, match="the gradient became nan at step 0"):
            fit(long_config, progress=False)


class TestWorker:
    def test_an_error_while_making_a_batch_ends_the_run(self, long_config, monkeypatch):
        """Batches are made by threads: what goes wrong there reaches the one who trains."""
        original = loader.TrainingBatches.cut

        def failing(batches, number, drawn):
            if batches.seed[1] == 2:
                raise pixels.ImageError("image x.jpg cannot be read")
            return original(batches, number, drawn)

        monkeypatch.setattr(loader.TrainingBatches, "cut", failing)
        with pytest.raises(pixels.ImageError, match="x.jpg"):
            fit(long_config.replace(workers=2), progress=False)
        monkeypatch.undo()
        assert resumes_at(long_config) == (2, 0)
        assert fit(long_config, progress=False).finished


class TestPrecision:
    def test_bfloat16_keeps_proxies_and_loss_in_float32(self, long_config):
        run = fit(long_config.replace(precision="bfloat16"), progress=False)
        assert weights(run.path)["proxies"].dtype == torch.float32
        assert all(np.isfinite(loss) for _, loss in losses(run.path))

    def test_float16_needs_a_gpu(self, long_config):
        with pytest.raises(ValueError, match="float16 needs a GPU: choose bfloat16"):
            fit(long_config.replace(precision="float16"), progress=False)


class TestSeen:
    def test_what_an_epoch_tells(self, long_config):
        last = fit(long_config, progress=False).epochs[-1]
        parts = {"proxy_anchor", "soft_orthogonality", "loss", "rms_cosine", "coherence"}
        gradients = {"gradient_norm", "gradient_norm_largest", "gradients_clipped"}
        assert parts | gradients | {"images_per_second"} <= last.keys()
        assert 0 <= last["gradients_clipped"] <= 1

    def test_bar(self, long_config, capsys, monkeypatch):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        fit(long_config.replace(selection="validation", validation_fraction=0.5, batch_size=4))
        shown = capsys.readouterr().err
        for part in ("PA ", "SO ", "R@1 ", "img"):
            assert part in shown

    def test_tensorboard(self, long_config):
        pytest.importorskip("tensorboard")
        run = fit(long_config.replace(tracker="tensorboard"), progress=False)
        assert list(run.path.rglob("events.out.tfevents*"))

    def test_a_tracker_that_is_not_installed(self, long_config, monkeypatch):
        monkeypatch.setitem(sys.modules, "wandb", None)
        with pytest.raises(SobookError, match="not installed: pip install wandb"):
            fit(long_config.replace(tracker="wandb"), progress=False)

    def test_gradient_checkpointing_changes_nothing_but_memory(self, long_config, tmp_path):
        plain = fit(long_config, progress=False)
        again = fit(
            long_config.replace(gradient_checkpointing=True, run_dir=tmp_path / "again"),
            progress=False,
        )
        np.testing.assert_allclose(losses(plain.path), losses(again.path), rtol=1e-5)

    def test_chunks_change_nothing_but_memory(self, long_config, tmp_path):
        plain = fit(long_config, progress=False)
        again = fit(long_config.replace(chunk_size=3, run_dir=tmp_path / "again"), progress=False)
        np.testing.assert_allclose(losses(plain.path), losses(again.path), rtol=1e-5)
        np.testing.assert_allclose(plain.proxies(-1), again.proxies(-1), atol=1e-3)  # float16
