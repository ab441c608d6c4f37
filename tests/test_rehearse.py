"""The script that rehearses a benchmark on drawings: official counts, ordinary notes, resuming."""

import json
from collections import Counter

import pytest

from sobook.data import benchmarks, image_sets
from tests.benchmarks import rehearse

TINY = 0.002
pytestmark = pytest.mark.filterwarnings("ignore:.*stand-in")


@pytest.mark.parametrize("name", rehearse.NAMES)
def test_stand_ins_have_the_official_counts_and_say_what_they_are(name, tmp_path, monkeypatch):
    splits = rehearse.counts(name)
    assert splits == benchmarks.cards()[name]["splits"]
    pictures = list(rehearse.list_pictures(name, splits))
    assert len({picture.path for picture in pictures}) == len(pictures)
    for split, count in splits.items():
        sizes = Counter(picture.class_id for picture in pictures if picture.split == split)
        assert (sizes.total(), len(sizes), min(sizes.values()) >= 2) == (*count.values(), True)

    home = rehearse.draw(name, tmp_path, TINY)
    note = rehearse.note(name, TINY)
    few = {name: {**benchmarks.cards()[name], "splits": rehearse.counts(name, TINY)}}
    monkeypatch.setattr(benchmarks, "cards", lambda: few)
    assert image_sets.prepare(name, tmp_path, progress=False) == home
    for part in image_sets.load_splits(name, tmp_path).values():
        assert part.notes == (note,) and "stand-in" in note
    (home / "NOTES.txt").unlink()
    with pytest.raises(SystemExit, match="something else"):
        rehearse.draw(name, tmp_path, TINY)


def test_a_stopped_rehearsal_resumes_with_the_stage_that_was_stopped(tmp_path, monkeypatch):
    ran, stops = [], ["evaluate, frozen", "compare"]
    commands = {tuple(c): stage for stage, (c, _) in rehearse.stages("sop", tmp_path, TINY).items()}

    def run(command, root):
        ran.append(commands[tuple(command)])
        if ran[-1] in stops:
            raise KeyboardInterrupt(stops.remove(ran[-1]))
        return rehearse.resource.getrusage(rehearse.resource.RUSAGE_SELF)

    monkeypatch.setattr(rehearse, "_run", run)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            rehearse.rehearse("sop", tmp_path, TINY)
    stages = rehearse.rehearse("sop", tmp_path, TINY)["stages"]
    twice = [stage for stage, done in stages.items() if done["attempts"] == 2]
    assert twice == ["evaluate, frozen", "compare"] and ran.count("train PA") == 1
    committed = json.loads((rehearse.RESULTS / "rehearsal_sop.json").read_text())["stages"]
    assert [*stages] == [stage for stage in committed if stage != "prepare"]
    assert {*stages["evaluate"]} == {*committed["evaluate"]}
