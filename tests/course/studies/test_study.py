"""Studies: grids, their files, and resuming without repeating."""

import dataclasses
import json
import multiprocessing
import queue
from dataclasses import field, make_dataclass
from pathlib import Path

import pandas as pd
import pytest

from sobook import files
from sobook.course.studies import study
from sobook.errors import SobookError
from sobook.training.heads import HeadConfig

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

    with monkeypatch.context() as stopped:
        stopped.setattr(files, "write_json", write_one_and_stop)
        for _ in range(11):
            with pytest.raises(KeyboardInterrupt):
                study.run(one, jobs=1, progress=False)
    pd.testing.assert_frame_equal(study.run(one, jobs=1, progress=False), never)
    assert len(set(done)) == 11  # no finished run was repeated


# Spawned workers, as readers have them, import torch first; forked ones have it already.
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_table_as_one_process(tiny_study, monkeypatch, tmp_path, start):
    tiny_study.write_text(tiny_study.read_text().replace("[0, 1, 2, 3]", "[0]"))
    one, context = study.load(tiny_study), multiprocessing.get_context(start)
    alone = study.run(one, jobs=1, progress=False)
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "other"))
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    pd.testing.assert_frame_equal(study.run(one, jobs=2, progress=False), alone)


@pytest.mark.parametrize(
    "change, word",
    [
        (("[grid]", "[gird]"), "grid"),
        (('trainer = "head"', ""), "head or finetune"),
        (("epochs = 2", "epoch = 2"), "study tiny: .*epochs"),
        (("[0, 10, 100]", "10"), "list"),
        (("[0, 10, 100]", "[0, 10, 10.0]"), "the same settings"),
        (("epochs = 2", 'recipe = "cub200"'), "recipe"),
        (("so_weight = 0 }", "so_wieght = 0 }"), "so_weight"),
        (('title = "tiny"', "title = 3"), "title is 3"),
        (('title = "tiny"', "family = 3"), "family is 3"),
    ],
)
def test_mistakes_in_a_study_file_are_named(tiny_study, change, word):
    tiny_study.write_text(tiny_study.read_text().replace(*change))
    with pytest.raises(SobookError, match=word):
        study.load(tiny_study)


def test_a_study_file_can_say_none_name_a_recipe_and_list_values_of_a_case(tiny_study):
    tiny_study.write_text(tiny_study.read_text().replace("dim = 8", 'dim = "none"'))
    one = study.load(tiny_study)
    assert {one.config(varied).dim for _, varied in one.plan()} == {None}
    text = 'trainer = "finetune"\nfixed = { recipe = "cub200", dim = "none" }\n'
    tiny_study.write_text(f"{text}[[cases]]\nscale = [4, 16]\nso_weight = [0, 10]\n")
    one = study.load(tiny_study)
    assert one.cases[1:3] == ({"scale": 4, "so_weight": 10}, {"scale": 16, "so_weight": 0})
    config = one.config(one.cases[1])
    assert (config.dim, config.so_weight, config.epochs) == (None, 10.0, 60)
    with pytest.raises(SobookError, match="no study file"):
        study.load("nothing.toml")


@pytest.mark.parametrize(
    "change, word",
    [
        (("dim = 8", 'encoder = ["deit_micro_patch8_64", "deit_mikro"]'), "deit_mi"),
        (("dim = 8", "images_per_class = [0, 7]"), "7 images per class"),
    ],
)
def test_a_setting_that_cannot_run_is_named_before_the_first_run(
    tiny_study, change, word, monkeypatch
):
    text = tiny_study.read_text().replace(change[0], "")
    tiny_study.write_text(f"{text}{change[1]}\n")
    monkeypatch.setattr(study, "run_one", None)
    with pytest.raises(SobookError, match=word):
        study.run(study.load(tiny_study), jobs=1, progress=False)


def test_heads_and_fine_tuned_runs_measure_the_metrics(tiny_study):
    text = tiny_study.read_text().replace("[0, 10, 100]", "[10]").replace("[0, 1, 2, 3]", "[0]")
    text = text.replace("species = 8", "species = 16").replace("batch_size = 10", "batch_size = 8")
    head = text.replace("[grid]", "so_pairs_fraction = 0.5\nmax_images_per_class = 3\n[grid]")
    tables = []
    for study_file in (head, text.replace('"head"', '"finetune"')):
        tiny_study.write_text(study_file)
        tables.append(study.run(study.load(tiny_study), progress=False))
    assert tables[0]["frozen_recall_at_1"].tolist() == tables[1]["frozen_recall_at_1"].tolist()
    assert {"treated_confusion", "recall_without_common"} <= set(tables[0])
    shared = {"recall_at_1", "map_at_r", "mean_cosine", "embedding_mean_length", "threshold_at_end"}
    assert shared <= set(tables[0]) & set(tables[1])
    with pytest.raises(SobookError, match="map_at_k.*map_at_r"):
        study.gather(dataclasses.replace(study.load(tiny_study), metric="map_at_k"))


def test_jobs_are_one_per_gpu_or_core(tiny_study, monkeypatch):
    """Without a GPU: the answers of torch.cuda are made up."""
    jobs, taken, numbers = [], [], queue.SimpleQueue()
    monkeypatch.setattr(study, "check", lambda _: [])
    monkeypatch.setattr(study, "_run_all", lambda study, runs, number: jobs.append(number) or [])
    monkeypatch.setattr(files, "available_cores", lambda: 6)
    head = study.load(tiny_study)
    for gpus in (0, 4):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        for trainer in ("head", "finetune"):
            study.run(dataclasses.replace(head, trainer=trainer), progress=False)
    assert jobs == [6, 1, 4, 4]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    for name in ("torch.set_num_threads", "sobook.files.end_with_parent"):
        monkeypatch.setattr(name, lambda *_: None)
    for number in range(5):
        numbers.put(number)
        study._start_worker(numbers, jobs=5)
    assert taken == [0, 1, 2, 3, 0]


def test_environment_variables_are_read_and_stay_out_of_the_key(
    tiny_study, monkeypatch, tiny_aviary
):
    text = tiny_study.read_text().replace(f'"{tiny_aviary}"', '"$TINY_ROOT"')
    tiny_study.write_text(text.replace("[0, 10, 100]", "[0]").replace("[0, 1, 2, 3]", "[0]"))
    one = study.load(tiny_study)
    key = keys(one)
    with pytest.raises(SobookError, match="environment variable"):
        study.run(one, progress=False)
    monkeypatch.setenv("TINY_ROOT", str(tiny_aviary))
    assert len(study.run(one, progress=False)) == 1
    monkeypatch.setenv("TINY_ROOT", "/somewhere/else")
    assert keys(study.load(tiny_study)) == key and len(study.gather(one)) == 1


def test_keys_name_all_settings_however_they_are_given(tiny_study, monkeypatch):
    before = keys(study.load(tiny_study))
    text = f"margin = {HeadConfig().margin}\nscale = {HeadConfig().scale:g}\n[grid]"
    tiny_study.write_text(tiny_study.read_text().replace("[grid]", text))
    assert keys(study.load(tiny_study)) == before  # a default that is spelled out
    changed = make_dataclass(
        "HeadConfig", [("head_lr", float, field(default=0.2))], bases=(HeadConfig,), frozen=True
    )
    monkeypatch.setitem(study.TRAINERS, "head", changed)
    assert not set(before) & set(keys(study.load(tiny_study)))  # another default


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
    planned = pd.DataFrame([varied for _, varied in one.plan()])
    for name in one.factors:
        values = planned[name].map(lambda v: json.dumps(v) if type(v) is dict else v)
        assert set(table[name].dropna()) == set(values.dropna())
    facts = json.loads(table_file.with_suffix(".json").read_text())
    assert facts["runs"] == len(table) == len(planned)
