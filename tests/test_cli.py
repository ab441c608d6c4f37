"""The command line, as a user types it: every command once on tiny data, and what goes wrong."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sobook.cli import COMMANDS, main
from sobook.errors import SobookError
from sobook.training import loop
from sobook.training.config import TrainConfig
from sobook.training.run import Run


@pytest.fixture(scope="module")
def data(tiny_aviary, tiny_options):
    options = [str(word) for item in tiny_options.items() for word in item]
    return ["--root", str(tiny_aviary), "--options", *options]


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Two run folders, without and with soft orthogonality."""
    folder = tmp_path_factory.mktemp("runs")
    quick = ["--epochs", "1", "--batch-size", "8", "--dim", "16", "--selection", "last"]
    for name, weight in (("pa", "0"), ("so", "100")):
        more = ["--so-weight", weight, "--run-dir", str(folder / name)]
        assert main(["train", *data, *quick, *more]) == 0
    return [str(folder / "pa"), str(folder / "so")]


def output(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"sobook {command} " in shown.partition("For instance:")[2] and "{None}" not in shown


def test_the_module_runs_and_lists_every_command():
    command = [sys.executable, "-m", "sobook", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(f" {name} " in done.stdout for name in COMMANDS)


def test_runs_are_evaluated_compared_and_explored(runs, data, tmp_path, capsys):
    finished = Run.load(runs[0])
    words = ["--epochs", 1, "--batch-size", 8, "--dim", 16, "--selection", "last"]
    shown = output(capsys, "train", *data, *words, "--run-dir", runs[0])  # opened, not trained
    assert f"R@1 {finished.retrieval['recall']['1']:.3f}" in shown and runs[0] in shown
    assert "24 queries" in output(capsys, "evaluate", runs[0])
    assert "24 queries" in output(capsys, "evaluate", runs[0], "--dataset", "aviary", *data[:2])
    table = output(capsys, "compare", *runs)
    assert "RMS cos" in table and "so_weight" in table and table.count("\n") == 4
    page = tmp_path / "page.html"
    assert str(page) in output(capsys, "explore", *runs, "--out", page)
    assert '"name":"PA+SO"' in page.read_text(encoding="utf-8")


def test_what_needs_no_run(data, rng, tmp_path, capsys):
    assert data[1] in output(capsys, "prepare", "aviary", *data)
    assert "deit_micro_patch8_64, frozen" in output(capsys, "evaluate", *data)
    features, page = rng.normal(size=(160, 8)).astype(np.float32), tmp_path / "lab.html"
    split = np.repeat(["train", "test"], 80)
    np.savez(tmp_path / "f.npz", features=features, labels=np.arange(160) // 10, split=split)
    assert str(page) in output(capsys, "lab", "--features", tmp_path / "f.npz", "--out", page)
    assert page.stat().st_size > 10_000


def test_a_study(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    file = tmp_path / "own.toml"
    options = "{ species = 8, images_per_species = 6, size = 64, seed = 0 }"
    file.write_text(f"""trainer = "head"
fixed = {{ root = "{data[1]}", options = {options}, epochs = 1, batch_size = 8 }}
grid = {{ so_weight = [0, 1] }}
""")
    assert "own: 2 runs, 2 of them to come" in output(capsys, "study", file, "--dry-run")
    assert "own.md" in output(capsys, "study", file, "--out", tmp_path / "out", "--jobs", 1)
    assert (tmp_path / "out" / "own.md").is_file()


def test_a_dry_run_trains_nothing(data, tmp_path, capsys):
    folder = tmp_path / "run"
    words = [*data, "--batch-size", 8, "--dim", 16, "--selection", "last", "--run-dir", folder]
    assert "24 images" in output(capsys, "train", *words, "--dry-run")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["prepare", "cub2000"], "'cub200'"),
        (["evaluate", "no-such-run"], "no-such-run"),
        (["compare"], "two"),
        (["train", "--options", "specis", "8"], "choose species"),
        (["train", "--schedule", "Constnat"], "'constant'"),
        (["explore"], "one run"),
        (["search"], "--folder"),
        (["search", "--index", "gone.npz"], "gone.npz"),
        (["export", "no-such-run"], "--onnx"),
        (["lab", "some-run"], "name no run"),
        (["study", "gone"], "gone"),
        (["study", "gone", "--jobs", "0"], "--jobs"),
        (["grade", "--out", "grades.csv"], "notebook"),
    ],
)
def test_an_error_is_one_sentence_and_status_1(arguments, word, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("sobook: ") and error.count("\n") == 1 and word in error


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train", "--epochs", "many"]])
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_debug_shows_the_traceback():
    with pytest.raises(SobookError):
        main(["evaluate", "no-such-run", "--debug"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk gone")])
def test_what_stops_a_run_is_one_sentence(error, monkeypatch, capsys):
    def stop(config):
        raise error

    monkeypatch.setattr(loop, "fit", stop)
    assert main(["train"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and ("resumes" in line or str(error) in line)
    monkeypatch.setattr(loop, "fit", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug is not hidden
        main(["train"])


def test_a_recipe_replaces_the_defaults(monkeypatch):
    configs = []
    retrieval = {"recall": {"1": 1.0}, "recall_at_1_interval": (0, 1), "notes": ()}
    retrieval |= {"map_at_r": 1.0, "r_precision": 1.0, "queries": 1}
    run = SimpleNamespace(path=Path("run"), retrieval=retrieval, state={"device": "cpu"})
    monkeypatch.setattr(loop, "fit", lambda config: configs.append(config) or run)
    assert main(["train", "--recipe=cub200", "--dim", "16", "--weights", "none"]) == 0
    assert configs == [TrainConfig.recipe("cub200").replace(dim=16, weights=None)]
