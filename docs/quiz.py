"""The quiz bank for learning platforms: ``python docs/quiz.py moodle quiz.xml``.

The questions are in ``docs/teaching/quiz.toml``. They go out as Moodle XML, as a QTI 2.1 content
package, or as the page of the site with folded answers. `docs/build.py` makes all three.
"""

import argparse
import html
import random
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BANK = Path(__file__).resolve().parent / "teaching/quiz.toml"
TITLES = {
    "00": "Start here",
    "01": "Data",
    "02": "DeiT features",
    "03": "Losses, a short history",
    "04": "Proxy Anchor",
    "05": "Soft orthogonality",
    "06": "Proxy geometry",
    "07": "Embedding maps",
    "08": "Benchmark",
    "09": "What moves Recall@1?",
    "10": "Your images",
}


@dataclass(frozen=True)
class Option:
    """One answer to choose, and what to say to those who chose it."""

    letter: str  # A, B, …
    text: str
    comment: str  # why it is right, or the misconception
    right: bool


@dataclass(frozen=True)
class Question:
    """A question of the bank."""

    id: str  # notebook and number, such as 04-2
    text: str
    options: tuple[Option, ...]

    @property
    def answer(self) -> Option:
        return next(option for option in self.options if option.right)


def load(path: Path = BANK) -> list[Question]:
    """The questions in the order of the notebooks; their answers are mixed, always alike."""
    rng, places = random.Random(0), []  # each letter is right in one of four questions
    entries = tomllib.loads(path.read_text("utf-8"))["question"]
    while len(places) < len(entries):
        places += rng.sample(range(4), 4)
    return [_question(entry, place) for entry, place in zip(entries, places, strict=False)]


def _question(entry: dict, place: int) -> Question:
    answers = [(wrong["answer"], wrong["misconception"], False) for wrong in entry["wrong"]]
    random.Random(entry["id"]).shuffle(answers)  # the same order on every machine
    answers.insert(place, (entry["right"], entry["why"], True))
    options = (Option(letter, *answer) for letter, answer in zip("ABCD", answers, strict=False))
    return Question(entry["id"], entry["text"], tuple(options))


def markup(text: str) -> str:
    """Text with `code` and *stress*, as XHTML."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", text)


def feedback_on(option: Option) -> str:
    """What a platform says to a student who chose an answer."""
    return (
        option.comment if option.right else f"Not this one. What may lead to it: {option.comment}"
    )


# --- the page ------------------------------------------------------------------------------------


def page(questions: Sequence[Question]) -> str:
    """Markdown with the answers folded."""
    parts, notebook = [], ""
    for question in questions:
        if question.id[:2] != notebook:
            notebook = question.id[:2]
            parts.append(f"## {notebook} · {TITLES[notebook]}")
        parts.append(f"**{question.id}** {question.text}")
        parts.append("\n".join(f"- **{o.letter}** {o.text}" for o in question.options))
        right = question.answer
        comments = [f"**{right.letter}.** {right.comment}", "What the others catch:"]
        others = (option for option in question.options if not option.right)
        comments.append("\n".join(f"- **{o.letter}** {o.comment}" for o in others))
        answer = "\n\n".join(comments)
        parts.append(f"<details><summary>Answer</summary>\n\n{answer}\n\n</details>")
    return "\n\n".join(parts)


# --- Moodle --------------------------------------------------------------------------------------


def _moodle_text(tag: str, text: str, attributes: str = "") -> str:
    return f'<{tag}{attributes} format="html"><text>{html.escape(markup(text))}</text></{tag}>'


def moodle(questions: Sequence[Question]) -> str:
    """Moodle XML: a category for each notebook; a wrong answer brings up its misconception."""
    parts, notebook = ['<?xml version="1.0" encoding="UTF-8"?>', "<quiz>"], ""
    for question in questions:
        if question.id[:2] != notebook:
            notebook = question.id[:2]
            # A slash would begin a category inside a category.
            name = f"$course$/top/sobook/{notebook} {TITLES[notebook]}"
            parts.append('<question type="category"><category>')
            parts.append(f"<text>{html.escape(name)}</text></category></question>")
        parts.append('<question type="multichoice">')
        parts.append(f"<name><text>sobook {question.id}</text></name>")
        parts.append(_moodle_text("questiontext", question.text))
        parts.append("<defaultgrade>1</defaultgrade><penalty>0.3333333</penalty>")
        parts.append(f"<idnumber>sobook-{question.id}</idnumber>")
        parts.append("<single>true</single><shuffleanswers>true</shuffleanswers>")
        parts.append("<answernumbering>ABCD</answernumbering>")
        for option in question.options:
            fraction = f' fraction="{100 if option.right else 0}"'
            answer = _moodle_text("answer", option.text, fraction)
            feedback = _moodle_text("feedback", feedback_on(option))
            parts.append(answer.replace("</answer>", f"{feedback}</answer>"))
        parts.append("</question>")
    return "\n".join([*parts, "</quiz>", ""])


# --- QTI 2.1 -------------------------------------------------------------------------------------

QTI = "http://www.imsglobal.org/xsd/imsqti_v2p1"
PACKAGE = "http://www.imsglobal.org/xsd/imscp_v1p1"
_ITEM = """\
<?xml version="1.0" encoding="UTF-8"?>
<assessmentItem xmlns="{namespace}" identifier="Q{id}" title="sobook {id}" xml:lang="en-US"
    adaptive="false" timeDependent="false">
  <responseDeclaration identifier="RESPONSE" cardinality="single" baseType="identifier">
    <correctResponse><value>{letter}</value></correctResponse>
  </responseDeclaration>
  <outcomeDeclaration identifier="SCORE" cardinality="single" baseType="float">
    <defaultValue><value>0</value></defaultValue>
  </outcomeDeclaration>
  <outcomeDeclaration identifier="FEEDBACK" cardinality="single" baseType="identifier"/>
  <itemBody>
    <p>{text}</p>
    <choiceInteraction responseIdentifier="RESPONSE" shuffle="true" maxChoices="1">
{choices}
    </choiceInteraction>
  </itemBody>
  <responseProcessing>
    <responseCondition>
      <responseIf>
        <match><variable identifier="RESPONSE"/><correct identifier="RESPONSE"/></match>
        <setOutcomeValue identifier="SCORE">
          <baseValue baseType="float">1</baseValue>
        </setOutcomeValue>
      </responseIf>
    </responseCondition>
    <setOutcomeValue identifier="FEEDBACK"><variable identifier="RESPONSE"/></setOutcomeValue>
  </responseProcessing>
{feedback}
</assessmentItem>
"""
_MANIFEST = """\
<?xml version="1.0" encoding="UTF-8"?>
<manifest xmlns="{namespace}" identifier="sobook-quiz">
  <metadata>
    <schema>QTIv2.1 Package</schema>
    <schemaversion>1.0.0</schemaversion>
  </metadata>
  <organizations/>
  <resources>
{resources}
  </resources>
</manifest>
"""


def qti_item(question: Question) -> str:
    """One question as a QTI 2.1 item: one point, and feedback for the answer that was chosen."""
    choices = [
        f'      <simpleChoice identifier="{o.letter}">{markup(o.text)}</simpleChoice>'
        for o in question.options
    ]
    feedback = [
        f'  <modalFeedback outcomeIdentifier="FEEDBACK" identifier="{o.letter}" showHide="show">'
        f"{markup(feedback_on(o))}</modalFeedback>"
        for o in question.options
    ]
    return _ITEM.format(
        namespace=QTI,
        id=question.id,
        letter=question.answer.letter,
        text=markup(question.text),
        choices="\n".join(choices),
        feedback="\n".join(feedback),
    )


def qti(questions: Sequence[Question]) -> dict[str, str]:
    """The files of a QTI 2.1 content package: the manifest and one file per question."""
    items = {f"items/Q{question.id}.xml": qti_item(question) for question in questions}
    resources = [
        f'    <resource identifier="R{Path(name).stem}" type="imsqti_item_xmlv2p1" href="{name}">'
        f'<file href="{name}"/></resource>'
        for name in items
    ]
    manifest = _MANIFEST.format(namespace=PACKAGE, resources="\n".join(resources))
    return {"imsmanifest.xml": manifest, **items}


def write_qti(questions: Sequence[Question], out: Path) -> None:
    """The package as a .zip, the same bytes every time."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as package:
        for name, text in qti(questions).items():
            package.writestr(zipfile.ZipInfo(name), text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="quiz.py", description=__doc__.splitlines()[0])
    parser.add_argument("form", choices=("moodle", "qti", "page"))
    parser.add_argument("out", type=Path, help="quiz.xml, quiz.zip or quiz.md")
    options = parser.parse_args(arguments)
    questions = load()
    if options.form == "qti":
        write_qti(questions, options.out)
    else:
        made = moodle(questions) if options.form == "moodle" else page(questions)
        options.out.write_text(made, encoding="utf-8")
    print(f"{len(questions)} questions: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
