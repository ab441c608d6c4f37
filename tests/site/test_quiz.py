"""The quiz bank: its form, what it may claim, and its exports."""

import importlib.util
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.test_evidence import unsupported

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("quiz", ROOT / "docs/quiz.py")
quiz = sys.modules["quiz"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quiz)

QUESTIONS = quiz.load()
IDS = [question.id for question in QUESTIONS]


def test_forty_questions_three_or_four_for_each_notebook():
    counts = Counter(name[:2] for name in IDS)
    assert len(QUESTIONS) == len(set(IDS)) == 40
    assert list(counts) == sorted(quiz.TITLES) and set(counts.values()) == {3, 4}
    assert sorted(IDS) == IDS and all(re.fullmatch(r"\d\d-\d", name) for name in IDS)


def test_titles_are_those_of_the_notebooks():
    for script in (ROOT / "notebooks/source").glob("[0-9][0-9]_*.py"):
        title = re.search(r"(?m)^# # (.+)$", script.read_text("utf-8"))[1]
        assert title == f"{script.stem[:2]} · {quiz.TITLES[script.stem[:2]]}"


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
def test_a_question_has_one_right_answer_and_a_reason_for_each(question):
    assert [option.letter for option in question.options] == list("ABCD"[: len(question.options)])
    assert sum(option.right for option in question.options) == 1 and len(question.options) >= 3
    texts = [option.text for option in question.options]
    assert len(set(texts)) == len(texts)
    assert all(len(option.comment) > 20 for option in question.options)
    prose = [question.text, *texts, *(option.comment for option in question.options)]
    assert not [text for text in prose if re.search(r"[$|<_\\]", re.sub("`[^`]*`", "", text))]


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
def test_numbers_of_a_question_are_in_the_table_it_names(question):
    assert unsupported(quiz.page([question]).replace("## ", "")) == []


def test_the_right_answer_is_not_given_away_by_place_or_length():
    letters = Counter(question.answer.letter for question in QUESTIONS)
    assert set(letters.values()) == {10}
    longest = [max(q.options, key=lambda option: len(option.text)).right for q in QUESTIONS]
    shortest = [min(q.options, key=lambda option: len(option.text)).right for q in QUESTIONS]
    assert sum(longest) <= 14 and sum(shortest) <= 14


def test_moodle_xml_has_what_an_import_needs():
    root = ElementTree.fromstring(quiz.moodle(QUESTIONS))
    kinds = Counter(question.get("type") for question in root)
    assert root.tag == "quiz" and kinds == {"category": 11, "multichoice": 40}
    for entry in root.findall("question[@type='multichoice']"):
        assert entry.findtext("name/text") and entry.findtext("questiontext/text")
        answers = entry.findall("answer")
        fractions = Counter(answer.get("fraction") for answer in answers)
        assert fractions == {"100": 1, "0": len(answers) - 1}
        assert all(answer.findtext("feedback/text") for answer in answers)
        for text in entry.iter("text"):  # inside is HTML, which has to be well-formed as well
            ElementTree.fromstring(f"<p>{text.text}</p>")


N = {"q": quiz.QTI, "p": quiz.PACKAGE}
# What the standard says: these children of an item, in this order.
ORDER = ["responseDeclaration", "outcomeDeclaration", "itemBody", "responseProcessing"]
ORDER += ["modalFeedback"]


@pytest.mark.parametrize("question", QUESTIONS, ids=IDS)
def test_a_qti_item_is_one_the_standard_describes(question):
    item = ElementTree.fromstring(quiz.qti_item(question))
    assert {"identifier", "title", "adaptive", "timeDependent"} <= set(item.keys())
    children = [ORDER.index(child.tag.partition("}")[2]) for child in item]
    assert children == sorted(children) and set(children) == set(range(len(ORDER)))
    choices = [c.get("identifier") for c in item.findall(".//q:simpleChoice", N)]
    right = item.findtext("q:responseDeclaration/q:correctResponse/q:value", namespaces=N)
    feedback = [f.get("identifier") for f in item.findall("q:modalFeedback", N)]
    assert len(set(choices)) == len(choices) and right in choices and feedback == choices
    declared = {d.get("identifier") for d in item if d.tag.endswith("Declaration")}
    for used in item.find("q:responseProcessing", N).iter():
        assert used.get("identifier", "SCORE") in declared


def test_the_qti_package_lists_all_its_files(tmp_path):
    assert quiz.main(["qti", str(tmp_path / "a.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        names = set(package.namelist())
        manifest = ElementTree.fromstring(package.read("imsmanifest.xml"))
    resources = manifest.findall("p:resources/p:resource", N)
    assert {r.get("type") for r in resources} == {"imsqti_item_xmlv2p1"}
    assert {r.get("href") for r in resources} == names - {"imsmanifest.xml"}
    assert all(r.find("p:file", N).get("href") == r.get("href") for r in resources)
