"""The page Performance: every table it asks for can be made from what is committed."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measured():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "docs/measured.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_and_the_page_name_each_other():
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\{\{(\w+)\}\}", page)) == set(measured().TABLES)


def test_every_table_has_rows_of_one_width():
    for name, make in measured().TABLES.items():
        text = make()
        rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        assert text and "nan" not in text, name
        assert len(set(rows)) <= 1, name
