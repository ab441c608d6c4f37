"""Studies: grids, their files, and resuming without repeating."""

import contextlib
import json
import queue
import time
from dataclasses import field, fields, make_dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sobook import cli, files
from sobook.course.studies import study
from sobook.errors import SobookError
from sobook.training.config import TrainConfig, recipes
from sobook.training.heads import HeadConfig
from tests import processes

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = sorted((ROOT / "data/studies").glob("*.toml"))


def keys(one: study.Study) -> list[str]:
    return [key for key, _ in one.plan()]


def test_a_study_interrupted_after_every_run_ends_with_the_same_table(tiny_study, monkeypatch):
    one = study.load(tiny_study)
    monkeypatch.setenv("SOBOOK_DATA", str(tiny_study.parent / "never"))
    never = study.run(one, jobs=1, progress=False)

    monkeypatch.setenv("SOBOOK_DATA", str(tiny_study.parent / "often"))
    done, write_json = [], files.write_json

    def write_one_and_stop(file, values):
        write_json(file, values)
        done.append(file)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", write_one_and_stop)
    for _ in range(11):
        with pytest.raises(KeyboardInterrupt):
            study.run(one, jobs=1, progress=False)
    monkeypatch.setattr(files, "write_json", write_json)
    pd.testing.assert_frame_equal(study.run(one, jobs=1, progress=False), never)
    assert len(set(done)) == 11  # nothing finished was done again


@pytest.mark.slow
def test_a_study_killed_ten_times_ends_with_the_same_table(tiny_study, tmp_path, monkeypatch):
    never = tmp_path / "never"
    assert cli.main(["study", str(tiny_study), "--out", str(never), "--jobs", "1"]) == 0

    results = tmp_path / "killed/studies"
    for _ in range(10):
        before = len(list(results.glob("head-*.json")))
        process = processes.start_study(tiny_study, tmp_path / "killed")
        # Each life is cut off as soon as something new is finished, before the next thing is.
        while len(list(results.glob("head-*.json"))) == before and process.is_alive():
            time.sleep(0.02)
        assert process.is_alive(), "the study ended before it could be killed"
        process.kill()
        process.join()
    done = {file.name: file.stat().st_mtime_ns for file in results.glob("head-*.json")}
    assert 10 <= len(done) < 12
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "killed"))
    assert cli.main(["study", str(tiny_study), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    for name, written in done.items():  # nothing finished was done again
        assert (results / name).stat().st_mtime_ns == written
    assert (tmp_path / "out/tiny.csv").read_text() == (never / "tiny.csv").read_text()


def test_workers_give_the_same_table_as_one_process(tiny_study, monkeypatch, tmp_path):
    one = study.load(tiny_study)
    alone = study.run(one, jobs=1, progress=False)
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "other"))
    pd.testing.assert_frame_equal(study.run(one, jobs=2, progress=False), alone)


@pytest.mark.parametrize(
    "change, message",
    [
        (("[grid]", "[gird]"), "Did you mean 'grid'?"),
        (('trainer = "head"', 'trainer = "hed"'), "Did you mean 'head'?"),
        (('trainer = "head"', ""), "choose head or finetune"),
        (("epochs = 2", "epoch = 2"), "study tiny: unknown setting 'epoch'"),
        (("epochs = 2", "epochs = 0"), "study tiny: epochs"),
        (("[0, 10, 100]", "10"), "must be a list"),
        (("[0, 10, 100]", "[0, 10, 10.0]"), "the same settings"),
        (("epochs = 2", "epochs = "), "not valid TOML"),
        (("epochs = 2", 'epochs = "2"'), "study tiny: epochs is '2': it must be a whole number"),
        (("epochs = 2", 'schedule = "linaer"'), "unknown schedule 'linaer'"),
        (("epochs = 2", 'schedule = "constnat"'), "Did you mean 'constant'?"),
        (("epochs = 2", 'loss = "tripplet"'), "Did you mean 'triplet'?"),
        (("epochs = 2", 'regularizer = "double_soo"'), "Did you mean 'double_so'?"),
        (("epochs = 2", "loss_options = { scale = 2 }"), "no other loss is chosen"),
        (("epochs = 2", "max_images_per_class = 0"), "max_images_per_class is 0"),
        (("epochs = 2", "lr = 1e-3"), "unknown setting 'lr' of HeadConfig"),
        (("epochs = 2", 'recipe = "cub200"'), "unknown setting 'recipe' of HeadConfig"),
        (('dataset = "aviary"', 'dataset = "avairy"'), "Did you mean 'aviary'?"),
        (("[grid]", 'metric = "recal_at_1"\n[grid]'), "unknown setting 'metric'"),  # in [fixed]
        (('title = "tiny"', 'metric = "recal_at_1"'), "metric 'recal_at_1'"),
        (('title = "tiny"', 'metric = "map_at_k"'), "Did you mean 'map_at_r'?"),
        (('select_by = "validation_recall_at_1"', 'select_by = "recall"'), "metric 'recall'"),
        (("so_weight = 0 }", "so_wieght = 0 }"), "Did you mean 'so_weight'?"),
        (('title = "tiny"', 'within = ["epochs"]'), "tiny.toml: factor 'epochs': choose so_weight"),
        (('title = "tiny"', 'within = "seed"'), "tiny.toml: within is 'seed': it must be a list"),
        (('title = "tiny"', "title = 3"), "tiny.toml: title is 3: it must be text"),
        (('title = "tiny"', 'name = "../tiny"'), "it becomes a file, without folders"),
        (("[grid]", "[grid.so_weight]\nx = 1\n[cases]"), "cases"),
        (("[0, 1, 2, 3]", str(list(range(99_999)))), "it has 299,997 runs: at most 100,000"),
        (("seed = [", '"options.seed" = [1]\n"epochs.x" = ['), "epochs is 2: it must be a table"),
        (("so_weight = [0, 10, 100]", 'so_weight = [0, "ten"]'), "so_weight is 'ten'"),
    ],
)
def test_mistakes_in_a_study_file_are_named(tiny_study, change, message):
    tiny_study.write_text(tiny_study.read_text().replace(*change))
    with pytest.raises(SobookError) as raised:
        study.load(tiny_study)
    assert message in str(raised.value)


def test_none_is_said_in_a_study_file(tiny_study):
    tiny_study.write_text(tiny_study.read_text().replace("dim = 8", 'dim = "none"'))
    one = study.load(tiny_study)
    assert {one.config(varied).dim for _, varied in one.plan()} == {None}
    text = 'trainer = "finetune"\nfixed = { recipe = "cub200", dim = "none", so_weight = 1 }\n'
    tiny_study.write_text(text)
    config = study.load(tiny_study).config({})
    assert (config.dim, config.so_weight, config.epochs) == (None, 1.0, 60)


@pytest.mark.parametrize(
    "change, message",
    [
        (("batch_size = 10", "batch_size = [10, 1000]"), "batch_size is 1000, but there are only"),
        (("dim = 8", 'encoder = ["deit_micro_patch8_64", "deit_mikro"]'), "deit_micro_patch8_64"),
        (("dim = 8", "images_per_class = [0, 7]"), "with 7 images per class"),
        (
            ("dim = 8", 'loss = ["triplet", "arcface"]\nloss_options = [{ margn = 1 }]'),
            "the loss 'triplet' does not take {'margn': 1}",
        ),
    ],
)
def test_what_would_stop_a_later_run_is_said_before_the_first(
    tiny_study, change, message, monkeypatch
):
    """The settings that cannot work come last; no run may be made before they are found."""
    name, values = change[1].partition(" = ")[::2]
    text = tiny_study.read_text().replace(change[0], "")
    if "loss_options" in change[1]:
        (name, values), (other, options) = (line.split(" = ", 1) for line in change[1].splitlines())
        text += f"{other} = {options}\n"
    tiny_study.write_text(f"{text}{name} = {values}\n")
    monkeypatch.setattr(study, "run_one", None)
    with pytest.raises(SobookError) as raised:
        study.run(study.load(tiny_study), jobs=1, progress=False)
    assert message in str(raised.value)


def test_metrics_are_those_that_runs_measure(tiny_study):
    """A metric that no run measures was found after all runs were done."""
    text = tiny_study.read_text().replace("[0, 10, 100]", "[10]").replace("[0, 1, 2, 3]", "[0]")
    text = text.replace("species = 8", "species = 16").replace("batch_size = 10", "batch_size = 8")
    measured = set()
    for extra in ("so_pairs_fraction = 0.5\nmax_images_per_class = 3\n[grid]", "[grid]"):
        trainer = '"head"' if "pairs" in extra else '"finetune"'
        tiny_study.write_text(text.replace("[grid]", extra).replace('"head"', trainer))
        table = study.run(study.load(tiny_study), progress=False)
        measured |= set(table) - {"so_weight", "seed", "trainer", "config"}
    measured = {name for name in measured if not name.startswith("recall_at_")} | {"recall_at_1"}
    assert measured == set(study.METRICS)


def test_jobs_are_one_for_each_gpu_or_core(tiny_study, monkeypatch):
    found = []
    monkeypatch.setattr(study, "_run_all", lambda study, runs, jobs: found.append(jobs) or [])
    monkeypatch.setattr(files, "available_cores", lambda: 6)
    heads = study.load(tiny_study)
    tiny_study.write_text(tiny_study.read_text().replace('"head"', '"finetune"'))
    for gpus in (0, 4):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        for one in (heads, study.load(tiny_study)):
            study.run(one, progress=False)
    assert found == [6, 1, 4, 4]


def test_workers_share_the_gpus_and_a_report_names_them(monkeypatch):
    """What GPUs would answer is made up: it needs none."""
    numbers, taken = queue.SimpleQueue(), []
    for number in range(3):
        numbers.put(number)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    monkeypatch.setattr(files, "end_with_parent", lambda: None)
    for _ in range(3):
        study._start_worker(numbers, jobs=3)
    assert taken == [0, 1, 0] and study._machine() == "Tesla T4"


def test_a_study_that_is_not_there(tmp_path):
    with pytest.raises(SobookError, match="there is no study file"):
        study.load(tmp_path / "nothing.toml")


def test_environment_variables_are_read_and_stay_out_of_the_key(
    tiny_study, monkeypatch, tiny_aviary
):
    text = tiny_study.read_text().replace(f'"{tiny_aviary}"', '"$TINY_ROOT"')
    tiny_study.write_text(text.replace("[0, 10, 100]", "[0]").replace("[0, 1, 2, 3]", "[0]"))
    one = study.load(tiny_study)
    key = keys(one)
    with pytest.raises(SobookError, match="set the environment variable"):
        study.run(one, progress=False)
    monkeypatch.setenv("TINY_ROOT", str(tiny_aviary))
    assert len(study.run(one, progress=False)) == 1
    monkeypatch.setenv("TINY_ROOT", "/somewhere/else")
    assert keys(study.load(tiny_study)) == key and len(study.gather(one)) == 1


def test_a_changed_default_is_another_run(tiny_study, monkeypatch):
    before = keys(study.load(tiny_study))
    changed = make_dataclass(
        "HeadConfig", [("margin", float, field(default=0.2))], bases=(HeadConfig,), frozen=True
    )
    monkeypatch.setitem(study.TRAINERS, "head", changed)
    assert not set(before) & set(keys(study.load(tiny_study)))


def test_a_default_that_is_spelled_out_is_the_same_run(tiny_study):
    before = keys(study.load(tiny_study))
    text = f"margin = {HeadConfig().margin}\nscale = {HeadConfig().scale:g}\n[grid]"
    tiny_study.write_text(tiny_study.read_text().replace("[grid]", text))
    assert keys(study.load(tiny_study)) == before


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_studies_and_their_tables_agree(file):
    one = study.load(file)
    assert one.name == file.stem and files.shipped(f"studies/{one.name}.toml") == file
    table_file = ROOT / f"data/results/{one.name}.csv"
    if not table_file.exists():
        pytest.skip(f"not run yet, or only in part: sobook study {one.name}")
    table = pd.read_csv(table_file)
    assert list(table.columns[: len(one.factors)]) == one.factors
    assert {one.metric, one.select_by or one.metric} <= set(table)
    planned = pd.DataFrame([settings for _, settings in one.plan()])
    for name in one.factors:
        values = planned[name].map(
            lambda v: json.dumps(v, sort_keys=True) if type(v) is dict else v
        )
        assert set(table[name].dropna()) == set(values.dropna())
    facts = json.loads(table_file.with_suffix(".json").read_text())
    assert facts["runs"] == len(table) == len(planned)


def test_fine_tuning_in_a_study(tiny_study, tmp_path):
    text = tiny_study.read_text().replace("[0, 10, 100]", "[100]").replace("[0, 1, 2, 3]", "[0]")
    head_file = tmp_path / "head.toml"
    head_file.write_text(text)
    tiny_study.write_text(text.replace('"head"', '"finetune"'))
    table = study.run(study.load(tiny_study), progress=False)
    assert len(table) == 1 and 0 <= table["recall_at_1"][0] <= 1
    assert {"rms_cosine", "common_mode_share", "validation_recall_at_1"} <= set(table)
    heads = study.run(study.load(head_file), progress=False)
    assert heads["frozen_recall_at_1"].tolist() == table["frozen_recall_at_1"].tolist()


def test_a_list_in_a_case_is_a_case_for_each_value(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        'trainer = "head"\n[[cases]]\nmethod = "PA"\nscale = [4, 16]\nso_weight = [0, 10]\n'
        '[[cases]]\nmethod = "ArcFace"\nloss = "arcface"\n"loss_options.scale" = 8\n'
    )
    cases = study.load(file).cases
    assert cases[:3] == (
        {"method": "PA", "scale": 4, "so_weight": 0},
        {"method": "PA", "scale": 4, "so_weight": 10},
        {"method": "PA", "scale": 16, "so_weight": 0},
    )
    assert cases[4:] == ({"method": "ArcFace", "loss": "arcface", "loss_options.scale": 8},)


def mutated(text: str, rng: np.random.Generator) -> str:
    """A study file as nobody would write it: values, keys, lines and characters that went wrong."""
    lines = text.splitlines()
    odd = [
        "-1",
        "0",
        "nan",
        "inf",
        "1e400",
        '"none"',
        "true",
        "[]",
        "{}",
        "[[1], [2]]",
        "''",
        '"é"',
    ]
    odd += ["1979-05-27", "9" * 30, "{ a = { b = 1 } }", "[1, 'a']", "8.0", '"cub200"', "2.5"]
    for _ in range(rng.integers(1, 4)):
        i, kind = int(rng.integers(len(lines))), rng.integers(6)
        name, equals, _ = lines[i].partition(" = ")
        if kind < 3 and equals:
            lines[i] = f"{name} = {rng.choice(odd)}"
        elif kind == 3:
            lines[i] = lines[int(rng.integers(len(lines)))]
        elif kind == 4:
            at = int(rng.integers(len(lines[i]) + 1))
            lines[i] = lines[i][:at] + chr(rng.integers(32, 0x300)) + lines[i][at + 1 :]
        else:
            lines[i] = f"{rng.choice(KEYS)} = {rng.choice(odd)}"
    return "\n".join(lines)


KEYS = [item.name for one in (HeadConfig, TrainConfig, study.Study) for item in fields(one)]
KEYS += ["recipe", '"options.seed"', '"epochs.x"', "family", "family.where", "grid.seed", "a.b.c"]


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_study_files_are_read_or_refused(tmp_path, count, monkeypatch):
    """No traceback but the domain errors, and no file takes long."""
    monkeypatch.chdir(tmp_path)  # where root = "" or a mutated one would be looked for
    rng, texts = np.random.default_rng(15), [file.read_text() for file in COMMITTED]
    outcomes = {True: 0, False: 0}
    for number in range(count):
        file = tmp_path / "mutated.toml"
        file.write_text(mutated(texts[number % len(texts)], rng), encoding="utf-8")
        began = time.perf_counter()
        try:
            study.load(file)
        except SobookError as error:
            assert str(error)
            outcomes[False] += 1
        else:
            outcomes[True] += 1
        assert time.perf_counter() - began < 10
    assert all(outcomes.values())


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_recipes_are_read_or_refused(tmp_path, count, monkeypatch):
    rng, text = np.random.default_rng(16), files.shipped("recipes.toml").read_text()
    names = list(recipes())
    for number in range(count):
        file = tmp_path / "recipes.toml"
        file.write_text(mutated(text, rng), encoding="utf-8")
        monkeypatch.setattr(files, "shipped", lambda _, file=file: file)
        recipes.cache_clear()
        with contextlib.suppress(SobookError):
            TrainConfig.recipe(names[number % len(names)])
    monkeypatch.undo()
    recipes.cache_clear()
