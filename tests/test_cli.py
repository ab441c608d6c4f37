"""The command line, as a user types it."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sobook import cli, search
from sobook.cli import COMMANDS, main
from sobook.errors import RunError, SobookError
from sobook.training import loop
from sobook.training.config import TrainConfig
from sobook.training.run import Run


@pytest.fixture
def data(tiny_aviary, tiny_options):
    options = [text for item in tiny_options.items() for text in map(str, item)]
    return ["--root", str(tiny_aviary), "--options", *options]


@pytest.fixture
def train(data, tmp_path):
    def run(name, *more):
        folder = tmp_path / name
        quick = ["--epochs", "1", "--batch-size", "8", "--dim", "16", "--selection", "last"]
        assert main(["train", *data, *quick, "--run-dir", str(folder), *more]) == 0
        return folder

    return run


def test_train_evaluate_compare_embed_explore(train, tmp_path, capsys):
    """The whole way, on eight species."""
    pa, so = train("pa"), train("so", "--so-weight", "100")
    assert "R@1" in capsys.readouterr().out
    assert main(["evaluate", str(pa)]) == 0
    said = capsys.readouterr().out
    assert "24 queries" in said and f"computed on {Run.load(pa).state['device']}" in said
    assert main(["compare", str(pa), str(so)]) == 0
    table = capsys.readouterr().out
    assert "RMS cos" in table and "so_weight" in table and table.count("\n") == 3
    out = tmp_path / "test.npz"
    assert main(["embed", str(so), "--out", str(out)]) == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["embeddings"].shape == (24, 16) and len(file["paths"]) == 24
        assert len(file["class_names"]) == 4
    page = tmp_path / "page.html"
    assert main(["explore", str(pa), str(so), "--out", str(page), "--images", "4"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "4 of 4 classes with proxies and 4 test classes" in text
    assert '"name":"PA"' in text and '"name":"PA+SO"' in text and "data:image/webp" in text


def test_what_is_missing_is_said_in_every_report(tiny_aviary, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    folder, run = tmp_path / "pictures", tmp_path / "run"
    shutil.copytree(next(tiny_aviary.glob("aviary/v*-8x6-64px-seed0")), folder)
    broken = sorted(folder.glob("*/0000.png"))[-1]  # in a test class
    broken.write_bytes(broken.read_bytes()[:99])
    quick = ["--epochs", "1", "--batch-size", "8", "--dim", "16", "--selection", "last"]
    given = ["--dataset", "folder", "--root", str(folder)]
    assert main(["train", *given, *quick, "--run-dir", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert main(["embed", str(run), "--out", str(tmp_path / "test.npz")]) == 0
    said = f"1 left out (image file is truncated): {broken.relative_to(folder)}"
    assert capsys.readouterr().out.count(f"note: {said}") == 3
    with np.load(tmp_path / "test.npz") as file:
        assert said in file["notes"]
    assert main(["explore", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert f"Note: {said}" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["export", str(run), "--hub", str(tmp_path / "hub")]) == 0
    assert f"- {said}" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    study = tmp_path / "own.toml"
    study.write_text(f"""trainer = "head"
[fixed]
dataset = "folder"
root = "{folder}"
epochs = 1
validation_fraction = 0.5
batch_size = 8
[grid]
seed = [0]
""")
    assert main(["study", str(study), "--out", str(tmp_path)]) == 0
    assert said in (tmp_path / "own.md").read_text(encoding="utf-8")


def test_evaluate_a_frozen_encoder(data, capsys):
    assert main(["evaluate", *data]) == 0
    assert "deit_micro_patch8_64, frozen" in capsys.readouterr().out


def test_prepare_prints_where(data, capsys):
    assert main(["prepare", "aviary", *data]) == 0
    assert "aviary" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "cub2000"], "Did you mean 'cub200'"),
        (["evaluate", "no-such-run"], "no-such-run is not a run folder"),
        (["compare", "one"], "at least two"),
        (["train", "--encoder", "deit_mikro_patch8_64"], "deit_micro_patch8_64"),
        (["train", "--options", "specis", "8"], "species"),
        (["embed", "--out", "x.csv"], "must end in .npz"),
        (["explore", "no-such-run", "--out", "page.pdf"], "must end in .html"),
        (["explore", "no-such-run"], "not a run folder"),
        (["explore"], "name one run or two"),
        (["embed", "--out", "/dev/null/x.npz"], "/dev/null is a file"),
        (["search", "--folder", ".", "--page", "page.pdf"], "--page page.pdf: .* end in .html"),
        (["search", "--folder", ".", "--index", "index.csv"], "--index index.csv: .* end in .npz"),
        (["search", "--folder", ".", "--query", "gone.jpg"], "--query gone.jpg: there is no such"),
        (["search", "--folder", ".", "--k", "0"], "--k 0"),
        (["export", "no-such-run", "--onnx", "encoder.pt"], "must end in .onnx"),
        (["study", "gone"], "no study file 'gone'"),
        (["study", "gone", "--jobs", "0"], "--jobs 0"),
        (["train", "--lr", "nan"], "lr is nan: it must be a finite number"),
        (["train", "--epochs", "1000000000"], "between 1 and 9,999"),
        (["train", "--schedule", "Constnat"], "Did you mean 'constant'"),
        (["train", "--token", "none", "--tracker", "wandbb"], "Did you mean 'wandb'"),
        (["train", "--dataset", "folder", "--dry-run"], "'folder' needs root"),
        (["train", "--recipe", "cub2000"], "Did you mean 'cub200'"),
    ],
)
def test_errors_are_one_sentence_and_status_1(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("sobook: ") and "Traceback" not in error
    assert re.search(message, error)


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train", "--epochs", "many"]])
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"  sobook {command}" in capsys.readouterr().out


def test_module_can_be_run_and_names_every_command():
    command = [sys.executable, "-m", "sobook", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", ["--debug evaluate no-such-run", "evaluate no-such-run --debug"])
def test_debug_shows_the_traceback(words):
    with pytest.raises(SobookError, match="not a run folder"):
        main(words.split())


def test_a_process_beside_the_first_fails_with_its_number(monkeypatch, capsys):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "--epochs", "0"]) == 1
    assert capsys.readouterr().err.startswith("sobook (process 2): epochs is 0")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk gone"), RunError("no run")])
def test_what_stops_a_run_is_one_sentence(error, monkeypatch, capsys):
    def stop(config):
        raise error

    monkeypatch.setattr(loop, "fit", stop)
    assert main(["train"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and ("resumes" in line or str(error) in line)


OUTPUT = {
    "unread": "| true; exit ${PIPESTATUS[0]}",
    "closed": ">&- 2>&- <&-",
    "ascii": "| grep -q 'in all'; exit ${PIPESTATUS[0]}",
}


@pytest.mark.parametrize("output", OUTPUT)
def test_output_that_goes_nowhere_costs_nothing(output, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pixels-Vögel-–").write_bytes(b"1")
    command = f"{sys.executable} -m sobook cache --root {tmp_path} {OUTPUT[output]}"
    poor = {"PYTHONIOENCODING": "ascii"} if output == "ascii" else {}
    environment = {k: v for k, v in os.environ.items() if k != "TERM"} | poor
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_locale_of_ascii_reads_and_writes_utf_8(tmp_path):
    """Names in files are UTF-8 whatever the locale; what the terminal cannot show is escaped."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "from sobook import cli, files, errors\n"
        f"files.write_json({str(tmp_path / 'a.json')!r}, 'V\\xf6gel')\n"
        "cli._prepare_process(); print('V\\xf6gel \\u2013')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **ascii_alone}, capture_output=True)
    assert done.stdout == rb"V\xf6gel \u2013" + b"\n", done.stderr
    assert (tmp_path / "a.json").read_bytes() == '"Vögel"\n'.encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_as_ctrl_c_does(number, monkeypatch, capsys):
    """A scheduler ends a job with SIGTERM, a lost connection with SIGHUP."""
    before = signal.getsignal(number)
    monkeypatch.setattr(loop, "fit", lambda config: os.kill(os.getpid(), number))
    try:
        signal.signal(number, signal.SIG_DFL)
        assert main(["train"]) == 1
    finally:
        signal.signal(number, before)
    assert "stopped; the same command resumes" in capsys.readouterr().err


def test_nohup_is_obeyed():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        main(["cache"])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(loop, "fit", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train"])


def test_what_fails_with_old_packages_is_one_sentence(monkeypatch, capsys):
    """As with torch 2.4 from conda: an AttributeError deep inside, of whatever is missing there."""
    monkeypatch.setattr(loop, "fit", lambda config: config.make_params)
    needed = ["torch>=2.6", "numpy>=99.1; python_version < '4'", "tqdm>=1", "no-such>=1", "tyro"]
    needed += ["faiss-cpu>=99; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needed)
    assert main(["train"]) == 1
    told = capsys.readouterr().err
    installed = f"numpy {np.__version__} is installed, and sobook needs numpy>=99.1"
    assert f"no attribute 'make_params', and {installed}; no-such is not installed" in told
    assert "pip install 'numpy>=99.1' 'no-such>=1'." in told and told.count("\n") == 1
    with pytest.raises(AttributeError):
        main(["train", "--debug"])


def test_a_recipe_gives_defaults_and_none_can_be_given(monkeypatch):
    fitted = []
    run = SimpleNamespace(path=Path("run"), retrieval={})
    monkeypatch.setattr(loop, "fit", lambda config: fitted.append(config) or run)
    monkeypatch.setattr("sobook.training.processes.launched", lambda: (1, 2))  # prints no result
    assert main(["train", "--recipe=cub200", "--dim", "None", "--seed", "3"]) == 0
    assert main(["train", "--recipe", "cub200", "--weights", "none"]) == 0
    assert main(["train", "--recipe", "cub200", "--dim=none", "--seed", "3"]) == 0
    start = TrainConfig.recipe("cub200")
    assert fitted[:2] == [start.replace(dim=None, seed=3), start.replace(weights=None)]
    assert fitted[2] == fitted[0]


OPTIONAL = {
    item.name: kinds
    for item in dataclasses.fields(TrainConfig)
    if type(None) in (kinds := typing.get_args(item.type))
}


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_can_be_given_for_every_optional_option(name, monkeypatch):
    fitted = []
    run = SimpleNamespace(path=Path("run"), retrieval={}, state={"device": "cpu"})
    monkeypatch.setattr(loop, "fit", lambda config: fitted.append(config) or run)
    monkeypatch.setattr(cli, "_print_result", lambda *_: None)
    assert main(["train", f"--{name.replace('_', '-')}", "none"]) == 0
    assert getattr(fitted[0], name) is None


def test_dry_runs_say_what_will_be_done_and_do_nothing(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    folder = tmp_path / "run"
    words = ["train", *data, "--batch-size", "8", "--dim", "16", "--selection", "last", "--dry-run"]
    assert main([*words, "--run-dir", str(folder)]) == 0
    assert "train: 24 images of 4 classes" in capsys.readouterr().out
    assert main([*words, "--batch-size", "25"]) == 1
    assert "batch_size is 25, but there are only 24" in capsys.readouterr().err
    study = tmp_path / "own.toml"
    study.write_text(f"""trainer = "head"
[fixed]
root = "{data[1]}"
options = {{ species = 8, images_per_species = 6, size = 64, seed = 0 }}
validation_fraction = 0.5
batch_size = 8
[grid]
so_weight = [0, 1]
""")
    assert main(["study", str(study), "--dry-run"]) == 0
    assert "own: 2 runs, 2 of them to come" in capsys.readouterr().out
    assert not folder.exists() and not (tmp_path / "studies").exists()


def test_a_page_of_too_many_pictures_is_refused_before_they_are_embedded(
    tiny_aviary, tmp_path, capsys, monkeypatch
):
    """23,000 pictures were embedded for 90 s, and then the page refused their number."""
    monkeypatch.setattr(search, "MOST_ON_PAGE", 10)
    monkeypatch.setattr(search, "embed", None)
    (folder,) = tiny_aviary.glob("aviary/v*-8x6-64px-seed0")  # other tests draw more beside it
    words = ["search", "--folder", str(folder), "--page", str(tmp_path / "p.html")]
    assert main(words) == 1
    assert "48 pictures are too many for one page (at most 10)" in capsys.readouterr().err


def test_compare_opens_all_runs_before_it_embeds_any(train, tmp_path, capsys, monkeypatch):
    done, half = train("done"), tmp_path / "half"
    shutil.copytree(done, half)
    (half / "retrieval.json").unlink()
    monkeypatch.setattr(loop, "evaluate_run", None)
    assert main(["compare", str(done), str(half)]) == 1
    assert "half has no retrieval.json: the run is not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--classes", "0"], "classes: 0 is too few"), (["--images", "-1"], "images of each: -1")],
)
def test_sizes_of_the_explorer_are_checked(train, tmp_path, capsys, words, message):
    run = train("run")
    assert main(["explore", str(run), "--out", str(tmp_path / "page.html"), *words]) == 1
    assert message in capsys.readouterr().err


def test_cache_says_sizes_and_cleans(tmp_path, capsys):
    entry = tmp_path / "cache" / "embeddings-0123.npy"
    entry.parent.mkdir()
    entry.write_bytes(bytes(2_000_000))
    assert main(["cache", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "       2.0 MB  embeddings-0123.npy",
        "       2.0 MB  in all",
    ]
    assert main(["cache", "--root", str(tmp_path), "--clean"]) == 0
    assert "2.0 MB  deleted" in capsys.readouterr().out
    assert not entry.exists()
