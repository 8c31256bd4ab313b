"""README, DESIGN and docs/: short enough to be read, and links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_the_documents_are_there():
    assert {"README.md", "DESIGN.md", "CONTRIBUTING.md", "log.md"} <= {p.name for p in DOCUMENTS}


@pytest.mark.parametrize("name", ["README.md", "DESIGN.md"])
def test_it_has_at_most_150_lines(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_have_at_most_100_columns(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.parent.name == "docs":  # where tables compare; Markdown cannot break their rows
        lines = [line for line in lines if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 100]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link
