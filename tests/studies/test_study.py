"""Studies: grids, resumption after kills, tables, and the corrections for many looks."""

import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from sobook import cli, files, geometry
from sobook.losses import soft_orthogonality
from sobook.studies import baselines, study
from sobook.studies import figures as study_figures
from sobook.studies.frozen import HeadConfig, fit_head
from tests import processes

ROOT = Path(__file__).resolve().parents[2]

TINY = """
title = "tiny"
trainer = "head"
baseline = {{ so_weight = 0 }}
choose = "validation_recall_at_1"

[fixed]
dataset = "aviary"
root = "{root}"
options = {{ species = 8, images_per_species = 6, size = 64, seed = 0 }}
epochs = 2
batch_size = 10
dim = 8
validation_fraction = 0.5

[grid]
so_weight = [0, 10, 100]
seed = [0, 1, 2, 3]
"""


@pytest.fixture
def tiny_study(tmp_path, tiny_aviary, monkeypatch) -> Path:
    """A study of 12 short runs, with a data root of its own."""
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "data"))
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.format(root=tiny_aviary))
    return file


def _text(file: Path) -> str:
    return file.read_text()


def test_a_study_killed_ten_times_ends_with_the_same_table(tiny_study, tmp_path, monkeypatch):
    never = tmp_path / "never"
    assert cli.main(["study", str(tiny_study), "--out", str(never), "--jobs", "1"]) == 0

    results = tmp_path / "killed" / "studies"
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
    assert _text(tmp_path / "out" / "tiny.csv") == _text(never / "tiny.csv")


def test_workers_give_the_same_table_as_one_process(tiny_study, monkeypatch, tmp_path):
    one = study.load(tiny_study)
    alone = study.run(one, jobs=1, progress=False)
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path / "other"))
    pd.testing.assert_frame_equal(study.run(one, jobs=2, progress=False), alone)


def test_table_summary_and_files(tiny_study, tmp_path, capsys):
    assert cli.main(["study", str(tiny_study), "--out", str(tmp_path), "--jobs", "1"]) == 0
    table = pd.read_csv(tmp_path / "tiny.csv")
    one = study.load(tiny_study)
    assert len(table) == 12 and table["config"].is_unique
    result = study.summary(one, table)
    both = table.pivot(index="seed", columns="so_weight", values="recall_at_1")
    change = both[10] - both[0]
    row = result[result["so_weight"] == 10].iloc[0]
    assert row["difference"] == pytest.approx(change.mean())
    if change.std() > 0:
        ends = stats.ttest_1samp(change, 0).confidence_interval()
        assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(ends))
    assert result["chosen"].any()
    text = _text(tmp_path / "tiny.md")
    assert "sobook study tiny" in text and "versions" in text and "12" in text
    assert (tmp_path / "tiny.png").stat().st_size > 1000
    assert cli.main(["study", str(tiny_study), "--out", str(tmp_path), "--only-gather"]) == 0


@pytest.mark.parametrize(
    "change, said",
    [
        (("[grid]", "[gird]"), "Did you mean 'grid'?"),
        (('trainer = "head"', 'trainer = "tail"'), "trainer must be"),
        (("epochs = 2", "epoch = 2"), "Did you mean 'epochs'?"),
        (("[0, 10, 100]", "10"), "must be a list"),
        (("[0, 10, 100]", "[0, 10, 10]"), "the same settings"),
        (("epochs = 2", "epochs = "), "not valid TOML"),
    ],
)
def test_mistakes_in_a_study_file_are_named(tiny_study, change, said):
    tiny_study.write_text(tiny_study.read_text().replace(*change))
    with pytest.raises(study.StudyError, match=said.replace("?", r"\?")):
        study.load(tiny_study)


def test_environment_variables_are_read_and_stay_out_of_the_key(tiny_study, monkeypatch):
    text = tiny_study.read_text().split('root = "')
    tiny_study.write_text(text[0] + 'root = "$TINY_ROOT' + text[1][text[1].index('"') :])
    with pytest.raises(study.StudyError, match="set the environment variable"):
        study.load(tiny_study)._config({"seed": 0})
    keys = []
    for folder in ("/a", "/b"):
        monkeypatch.setenv("TINY_ROOT", folder)
        one = study.load(tiny_study)
        assert one._config({"seed": 0}).root == folder
        keys.append([key for key, _ in one.plan()])
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "data" / "studies").glob("*.toml")), ids=lambda f: f.stem
)
def test_every_committed_study_can_be_read(file):
    one = study.load(file)
    assert one.name == file.stem and len(one.plan()) > 0
    assert files.shipped(f"studies/{one.name}.toml") == file


def test_fine_tuning_in_a_study(tmp_path, tiny_aviary, monkeypatch):
    monkeypatch.setenv("SOBOOK_DATA", str(tmp_path))
    file = tmp_path / "tuned.toml"
    text = TINY.format(root=tiny_aviary).replace('"head"', '"finetune"')
    file.write_text(text.replace("[0, 10, 100]", "[100]").replace("[0, 1, 2, 3]", "[0]"))
    table = study.run(study.load(file), progress=False)
    assert len(table) == 1 and 0 <= table["recall_at_1"][0] <= 1
    assert {"rms_cosine", "common_share", "validation_recall_at_1"} <= set(table)


def test_holm_against_the_definition(rng):
    for _ in range(20):
        p = rng.uniform(0, 0.2, rng.integers(1, 9))
        order, n = np.argsort(p), len(p)
        slow = np.empty(n)
        for rank, i in enumerate(order):
            slow[i] = max(min(1, (n - r) * p[order[r]]) for r in range(rank + 1))
        np.testing.assert_allclose(study.holm(p), slow)
    assert np.isnan(study.holm([0.1, np.nan])[1])
    assert study.holm([0.1, np.nan])[0] == pytest.approx(0.1)


def test_regularizers_against_their_definitions(rng):
    proxies = torch.tensor(rng.normal(size=(7, 4)))
    unit = proxies / proxies.norm(dim=1, keepdim=True)
    pairs = list(itertools.combinations(range(7), 2))
    cosines = {(i, j): float(unit[i] @ unit[j]) for i, j in pairs}
    largest = max(abs(value) for value in cosines.values())
    assert float(baselines.mutual_coherence(proxies)) == pytest.approx(largest)
    nearest = [max(cosines[tuple(sorted((i, j)))] for j in range(7) if j != i) for i in range(7)]
    assert float(baselines.regular_face(proxies)) == pytest.approx(np.mean(nearest))
    apart = [np.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i, j in pairs]
    assert float(baselines.uniformity(proxies)) == pytest.approx(np.log(np.mean(apart)))
    # With unit rows, double SO is twice SO and a constant, (D − C) / C(C−1).
    double = float(baselines.double_soft_orthogonality(unit))
    assert double == pytest.approx(2 * float(soft_orthogonality(unit)) + (4 - 7) / 42)


def test_regular_face_against_pytorch_metric_learning(rng):
    regularizers = pytest.importorskip("pytorch_metric_learning.regularizers")
    proxies = torch.tensor(rng.normal(size=(9, 5)), dtype=torch.float32)
    theirs = float(regularizers.RegularFaceRegularizer()(proxies))
    assert float(baselines.regular_face(proxies)) == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("loss", ["proxy_anchor", *baselines.LOSSES])
def test_every_loss_trains_a_head(loss, tiny_aviary, tiny_options):
    if loss != "proxy_anchor":
        pytest.importorskip("pytorch_metric_learning")
    config = HeadConfig(
        root=str(tiny_aviary), options=tiny_options, loss=loss, epochs=2, batch_size=8, dim=8,
        images_per_class=2, validation_fraction=0.5,
    )  # fmt: skip
    measured = fit_head(config)
    assert measured == fit_head(config)  # nothing but the seed decides
    assert 0 <= measured["recall_at_1"] <= measured["recall_at_8"] <= 1


def test_noise_and_few_images(tiny_aviary, tiny_options):
    from sobook.studies.frozen import _features, _source, _spoil

    config = HeadConfig(root=str(tiny_aviary), options=tiny_options, noise=0.25, images_kept=4)
    features, labels = _features(_source(config), "train")
    kept, noisy = _spoil(features, labels, config, np.random.default_rng(0))
    rows = [int(np.flatnonzero((features == row).all(1))[0]) for row in kept]
    assert len(set(rows)) == 16 and np.bincount(labels[rows]).tolist() == [4, 4, 4, 4]
    assert int((noisy != labels[rows]).sum()) == 4  # a quarter, and never its own class


def test_so_spreads_and_centering_removes_the_common_mode(tiny_aviary, tiny_options):
    base = {"root": str(tiny_aviary), "options": tiny_options, "epochs": 30, "batch_size": 8}
    base |= {"dim": 16, "validation_fraction": 0}
    plain = fit_head(HeadConfig(**base))
    spread = fit_head(HeadConfig(**base, so_weight=100))
    centered = fit_head(HeadConfig(**base, center=True))
    assert spread["rms_cosine"] < 0.5 * plain["rms_cosine"]
    assert centered["mean_proxy_length"] < 0.5 * plain["mean_proxy_length"]


def test_common_mode_of_known_shapes(rng):
    directions = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    orthonormal = directions[:6]
    tilted = orthonormal + 2 * directions[7]  # all lean on one direction of their own
    found = geometry.common_mode(tilted)
    # Centered orthonormal rows are a simplex: all cosines are −1/(C−1).
    assert found["rms_cosine_centred"] == pytest.approx(1 / 5)
    assert found["mean_share"] == pytest.approx(1)
    assert found["common_share"] == pytest.approx(1 - (1 / 5) ** 2 / (4 / 5) ** 2)
    assert np.isnan(geometry.common_mode(np.eye(3))["common_share"])
    assert geometry.common_mode([[1.0, 0], [-1.0, 0]])["mean_proxy_length"] == 0


def test_figures_of_studies():
    rng = np.random.default_rng(0)
    rows = [
        {"so_weight": w, "center": c, "margin": 0.1, "seed": s, "setting": name}
        for (w, c), s, name in itertools.product(
            [(0, False), (0, True), (10, False)], range(3), "ab"
        )
    ]
    table = pd.DataFrame(rows)
    for column in ("rms_cosine", "rms_cosine_centred", "recall_at_1", "recall_without_common",
                   "cosine_of_mean_proxy_and_mean_embedding", "rms_floor"):  # fmt: skip
        table[column] = rng.uniform(size=len(table))
    table["train_classes"] = 10
    for figure in (
        study_figures.common_mode({"one": table, "two": table}),
        study_figures.regimes(table, 64),
    ):
        figure.canvas.draw()
        assert len(figure.get_label()) > 40


def test_a_baseline_without_its_package_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(ValueError, match="pip install pytorch-metric-learning"):
        baselines.make("arcface", 3, 4)


def test_methods_with_parameters_of_their_own_have_one_baseline():
    one = study.Study(
        "own", "own", "head", baseline={"method": "PA"}, grid={"seed": [0, 1]},
        cases=({"method": "PA", "scale": 16}, {"method": "ArcFace", "loss_options.scale": 8}),
    )  # fmt: skip
    table = pd.DataFrame(
        {
            "method": ["PA", "PA", "ArcFace", "ArcFace"],
            "scale": [16, 16, None, None],
            "loss_options.scale": [None, None, 8, 8],
            "seed": [0, 1, 0, 1],
            "recall_at_1": [0.5, 0.6, 0.55, 0.7],
        }
    )
    rows = study.summary(one, table).set_index("method")
    assert rows.loc["ArcFace", "difference"] == pytest.approx(0.075)
    assert np.isnan(rows.loc["PA", "difference"])


def test_no_panel_of_the_regimes_cuts_its_points_off():
    rows = [("few", 8, 0.16), ("as many", 64, 0.25), ("many", 320, 0.31)]
    table = pd.DataFrame(
        [
            {"setting": s, "so_weight": w, "seed": 0, "rms_cosine": v if w == 0 else v / 4,
             "rms_floor": 0.0, "train_classes": c}
            for s, c, v in rows
            for w in (0, 100)
        ]
    )  # fmt: skip
    axes = study_figures.regimes(table, 64).axes
    assert len({axis.get_ylim() for axis in axes}) == 1
    assert axes[0].get_ylim()[0] == 0 and axes[0].get_ylim()[1] > 0.31


def test_a_list_in_a_case_is_a_case_of_each_value(tmp_path):
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
