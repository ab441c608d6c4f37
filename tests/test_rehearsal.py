"""A benchmark rehearsed on drawings: official layout and counts, every command, and kills."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sobook import cli, files, rehearsal
from sobook.course.pages import explorer
from sobook.data import benchmarks, image_sets
from sobook.errors import DatasetError, SobookError

NAMES = ("cub200", "cars196", "sop", "inshop")
TINY = 0.002
pytestmark = pytest.mark.filterwarnings("ignore:.*stand-in")


@pytest.fixture
def in_process(monkeypatch):
    """Commands run in this process, which has loaded all they need; returns those that ran."""
    ran = []

    def run(command, root, held):
        monkeypatch.setenv("SOBOOK_DATA", str(root))
        words = command[3:] if command[1] == "-m" else []
        ran.append(words[:1] + ["--dry-run"] * ("--dry-run" in words))
        assert not words or cli.main(words) == 0
        return {"cpu_seconds": 1.0, "peak_bytes": 1}

    monkeypatch.setattr(rehearsal, "_run", run)
    return ran


@pytest.mark.parametrize("name", NAMES)
def test_the_full_list_has_the_official_counts(name):
    splits = rehearsal.counts(name)
    assert splits == benchmarks.cards()[name]["splits"]
    pictures = [*rehearsal.list_pictures(name, splits)]
    for split, count in splits.items():
        sizes = Counter(one.class_id for one in pictures if one.split == split)
        assert (sizes.total(), len(sizes)) == (count["images"], count["classes"])
        assert min(sizes.values()) >= 2
    assert len({one.path for one in pictures}) == len(pictures)


@pytest.mark.parametrize("name", NAMES)
def test_a_stand_in_is_read_as_the_benchmark_and_says_what_it_is(name, tmp_path):
    home = rehearsal.draw(name, tmp_path, TINY)
    assert image_sets.prepare(name, tmp_path, progress=False) == home
    splits = rehearsal.counts(name, TINY)
    for split, count in splits.items():
        images = image_sets.load(name, split, tmp_path)
        assert (len(images), images.num_classes) == (count["images"], count["classes"])
        assert images.notes == image_sets.notes(name, tmp_path)
    assert "drawn patterns" in images.notes[0] and f"layout of {name}" in images.notes[0]
    with pytest.raises(SobookError, match="another size.*delete it"):
        rehearsal.draw(name, tmp_path, 2 * TINY)
    os.remove(images.paths[0])
    with pytest.raises(DatasetError, match="not the whole benchmark"):
        image_sets.load(name, split, tmp_path)
    with pytest.warns(UserWarning, match="stand-in"):
        partial = image_sets.load(name, split, tmp_path, allow_partial=True)
    assert len(partial.notes) == 2 and "partial" in partial.notes[1]


def test_pictures_are_reproducible_and_have_a_class_signal():
    def array(number, class_id):
        return np.asarray(Image.open(io.BytesIO(rehearsal.picture(number, class_id))), float)

    assert rehearsal.picture(7, 3) == rehearsal.picture(7, 3)
    same, other = array(7, 3) - array(8, 3), array(7, 3) - array(8, 4)
    assert 0 < np.abs(same).mean() < np.abs(other).mean()
    assert array(1, 1).shape == (32, 32, 3)


def test_the_benchmark_itself_and_a_cut_off_marker_are_told_apart(tmp_path):
    home = tmp_path / "Stanford_Online_Products"
    home.mkdir()
    with pytest.raises(SobookError, match="the benchmark itself: name another"):
        rehearsal.draw("sop", tmp_path, TINY)
    (home / benchmarks.STAND_IN).write_text('{"note": ')
    with pytest.raises(DatasetError, match=r"STAND_IN.json marks a stand-in.*delete"):
        image_sets.notes("sop", tmp_path)


@pytest.mark.parametrize(("name", "words"), [("sopp", "Did you mean 'sop'"), ("aviary", "cub200")])
def test_only_benchmarks_are_rehearsed(name, words, tmp_path, capsys):
    assert cli.main(["rehearse", name, "--root", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err
    assert cli.main(["rehearse", "sop", "--root", str(tmp_path), "--fraction", "2"]) == 1
    assert "at most 1" in capsys.readouterr().err


def test_every_command_runs_and_every_report_says_stand_in(
    tmp_path, in_process, capsys, monkeypatch
):
    """In-Shop: query and gallery. The map is PCA here: UMAP is compiled first, which takes long."""
    project = explorer.project
    monkeypatch.setattr(explorer, "project", lambda x, **_: project(x, method="pca"))
    given = ["rehearse", "inshop", "--root", str(tmp_path), "--fraction", str(TINY)]
    assert cli.main(given) == 0
    words = ["prepare", "train", "evaluate", "train", "train", "evaluate", "compare", "explore"]
    assert [ran[0] for ran in in_process if ran] == [*words, "export"]
    root, said = tmp_path / "inshop", capsys.readouterr().out
    note = rehearsal.benchmarks.stand_in_note("inshop", rehearsal.counts("inshop", TINY))
    assert said.count(f"note: {note}") == 6  # prepare, evaluate, train twice, evaluate, compare
    for run in ("PA", "PA+SO"):
        for file in ("state.json", "retrieval.json"):
            assert note in json.loads((root / "runs" / run / file).read_text())["notes"]
    for file in ("explorer.html", "hub/README.md", "rehearsal.md", "rehearsal.json"):
        assert note in (root / file).read_text(encoding="utf-8")
    record = json.loads((root / "rehearsal.json").read_text())
    stages = record["stages"]
    assert all(done["attempts"] == 1 and done["seconds"] >= 0 for done in stages.values())
    assert stages["train PA"]["images_per_second"] > 0 and stages["draw"]["disk_bytes"] > 0
    in_process.clear()
    assert cli.main(given) == 0 and in_process == []  # all is there
    with pytest.raises(SobookError, match="another rehearsal.*delete it first"):
        rehearsal.rehearse("inshop", tmp_path, fraction=0.5)


def test_stopped_in_a_command_it_resumes_with_that_command(tmp_path, monkeypatch):
    ran, stops = [], ["evaluate, frozen", "compare"]

    def run(command, root, held):
        ran.append(next(stage for stage, one in stages.items() if one.command == command))
        if ran[-1] in stops:
            stops.remove(ran[-1])
            raise KeyboardInterrupt
        return {"cpu_seconds": 1.0, "peak_bytes": 1}

    monkeypatch.setattr(rehearsal, "_run", run)
    counts = rehearsal.counts("cub200", TINY)
    stages = rehearsal._stages("cub200", tmp_path / "cub200", counts)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rehearsal.rehearse("cub200", tmp_path, fraction=TINY, say=lambda _: None)
    file = rehearsal.rehearse("cub200", tmp_path, fraction=TINY, say=lambda _: None)
    done = json.loads((file.parent / "rehearsal.json").read_text())["stages"]
    assert {stage for stage in done if done[stage]["attempts"] == 2} == {
        "evaluate, frozen",
        "compare",
    }
    assert ran.count("compare") == 2 and ran.count("train PA") == 1


def test_a_command_that_fails_is_named_with_its_last_line(tmp_path):
    command = [sys.executable, "-m", "sobook", "prepare", "aviarry"]
    with pytest.raises(SobookError, match=r"prepare aviarry failed: .*Did you mean 'aviary'"):
        rehearsal._run(command, tmp_path, os.open(tmp_path, os.O_RDONLY))


ALONE = """
import sys
from pathlib import Path
from sobook import files, rehearsal

root = Path(sys.argv[1])
command = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
with files.lock(root / ".lock") as held:
    rehearsal._run(command, root, held)
"""


def test_a_command_whose_rehearsal_was_killed_keeps_the_lock(tmp_path):
    """Else the next rehearsal would start the same command beside it."""
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(tmp_path)], start_new_session=True)
    log = tmp_path / "rehearsal.log"
    try:
        while not log.exists() or "1\n" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
        with files.try_lock(tmp_path / ".lock") as free:
            assert not free
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the command
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with files.try_lock(tmp_path / ".lock") as free:
            if free:
                return
        time.sleep(0.05)
    pytest.fail("the lock outlives the command")


CODE = "import sys; from sobook import rehearsal; from pathlib import Path; "
CODE += "rehearsal.draw('sop', Path(sys.argv[1]), 0.005)"


def test_a_killed_drawing_resumes_and_ends_with_the_same_files(tmp_path):
    """SIGKILL in the middle, twice; what is there already is kept."""
    stage = tmp_path / ".Stanford_Online_Products.drawing"
    for enough in (100, 300):
        process = subprocess.Popen([sys.executable, "-c", CODE, str(tmp_path)])
        while len(_files(stage)) < enough and process.poll() is None:
            time.sleep(0.03)
        process.kill()
        process.wait()
    kept = {path: path.stat().st_mtime_ns for path in stage.rglob("*.JPG")}
    assert len(kept) >= 290 and not (tmp_path / "Stanford_Online_Products").exists()
    home = rehearsal.draw("sop", tmp_path, 0.005)
    for path, changed in kept.items():
        assert (home / path.relative_to(stage)).stat().st_mtime_ns == changed
    other = rehearsal.draw("sop", tmp_path / "other", 0.005)
    assert _files(home) == _files(other) and len(_files(home)) > 600
    for path in _files(home):
        assert (home / path).read_bytes() == (other / path).read_bytes()


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_two_kills_of_the_whole(name, tmp_path):
    """As a user has it: processes, killed with what they started a while after a stage began."""
    command = [sys.executable, "-m", "sobook", "rehearse", name, "--root", str(tmp_path)]
    command += ["--fraction", str(TINY)]
    for stage in ("pixel cache", "train PA+SO"):
        log = tmp_path / "said"
        with open(log, "w") as said:
            process = subprocess.Popen(command, stdout=said, start_new_session=True)
        while f"{stage}\n" not in log.read_text():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, 9)
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    done = json.loads((tmp_path / name / "rehearsal.json").read_text())["stages"]
    assert len(done) == 11 and sum(one["attempts"] for one in done.values()) >= 12
