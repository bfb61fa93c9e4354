"""The documents name things that there are."""

import re
import shlex

import click
import pytest
from walk import ROOT, blocks

from tileseg.cli import main
from tileseg.nights.nightly_file import read_night

RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
NIGHTLY = (ROOT / "docs" / "nightly.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
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


def shown(path):
    """Yield every command of ours in a document, as words; not what is a synopsis."""
    for block in blocks(path):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("tileseg ") and not re.search(r" \[|\.\.\.", line):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize(
    "path",
    [it for it in DOCUMENTS if it.name != "CHANGELOG.md"],
    ids=lambda it: it.name,
)
def test_every_command_that_is_shown_could_be_run(path):
    for words in shown(path):
        command, rest = main, words
        while isinstance(command, click.Group) and rest:
            name, *rest = rest
            command = command.get_command(click.Context(command), name)
            assert command, words
        if rest and not isinstance(command, click.Group):
            command.make_context(name, rest)


def test_the_table_of_options_is_that_of_the_command():
    table, _, _ = REFERENCE.partition("`tileseg check SCENE...`")
    told = {
        option
        for row in re.findall(r"^\| (`-.*?`) \| ", table, re.MULTILINE)
        for option in re.findall(r"(?<=[` ])--?[a-z-]+", row)
    }
    known = [set(item.opts) for item in main.commands["segment"].params]

    assert told <= set().union(*known)
    assert [options for options in known if not options & told] == []


def test_the_table_of_options_has_all_values():
    told = dict(re.findall(r"`--([a-z-]+) ([a-z0-9]+(?:\\\|[a-z0-9]+)+)`", REFERENCE))
    known = {
        item.opts[0][2:]: "\\|".join(item.type.choices)
        for item in main.commands["segment"].params
        if isinstance(item.type, click.Choice)
    }

    assert told.items() >= known.items()


def test_every_nights_file_that_is_shown_is_one(tmp_path):
    """Tables that are left out of a part are those of the first."""
    indented = re.findall(
        r"(?:^ {4,}(?!tileseg|pip).*\n|^\n(?= {4}))+", NIGHTLY, re.MULTILINE
    )
    parts = [part for part in indented if re.search(r"^ +\[", part, re.MULTILINE)]
    path = tmp_path / "nightly.toml"
    for part in parts:
        text = re.sub(r"^ +", "", part, flags=re.MULTILINE)
        if "[source]" not in text:
            text = f'[source]\nscenes = "scenes"\n{text}'
        if "[target]" not in text:
            text = f'[target]\noutput = "maps"\n{text}'
        path.write_text(text)
        assert read_night(path)
    assert len(parts) == 5
