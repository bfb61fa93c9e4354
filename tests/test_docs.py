"""The documents name things that there are."""

import re
import shlex
from contextlib import suppress
from pathlib import Path

import click
import pytest

from tileseg.cli import main

ROOT = Path(__file__).parents[1]
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "infra/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)

OURS = r"python jobs/(segment|nightly|evaluate)\.py|tileseg"


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


def commands():
    """Yield (document, words) of each command of ours in a block."""
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {4,}(.*\S)", text, flags=re.MULTILINE):
            plain = re.sub(r"\s#\s.*", "", line)
            found = re.search(rf"(?:^|-- )(?:{OURS})( .*)?$", plain)
            # In brackets is what may be left out: a synopsis, no command.
            if found and not re.search(r"\[|\.\.\.", plain):
                first = [found[1]] if found[1] else []
                yield path.name, (*first, *shlex.split(found[2] or ""))


@pytest.mark.parametrize(("_document", "words"), sorted(set(commands())))
def test_every_command_can_be_given(_document, words):
    command, rest = main, list(words)
    while isinstance(command, click.Group) and rest and rest[0][0] != "-":
        name = rest.pop(0)
        command = command.commands[name]

    with suppress(click.exceptions.Exit):  # --help, --version
        command.make_context(command.name, rest)
