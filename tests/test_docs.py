"""The documents name things that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "infra/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)


def slug(heading):
    """Return the anchor that a heading has."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize(
    "named", sorted(set(re.findall(r"test_\w+::test_\w+", RELIABILITY + SECURITY)))
)
def test_every_test_that_shows_a_promise_is_there(named):
    file, name = named.split("::")

    assert f"\ndef {name}(" in (ROOT / "tests" / f"{file}.py").read_text()


@pytest.mark.parametrize(
    ("document", "name"),
    [(RELIABILITY, f"F{number}") for number in range(1, 38)]
    + [(SECURITY, f"S{number}") for number in range(1, 20)],
    ids=lambda item: item[:3],
)
def test_every_fault_and_threat_has_a_row_or_a_reason(document, name):
    table, _, left_out = document.partition("## Left out")

    assert re.search(rf"\| [^|]*\b{name}\b", table) or name in left_out


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target
