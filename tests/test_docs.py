"""The documents name things that there are."""

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from making import make_scene, random_pixels, snapshot

from tileseg.cli import main
from tileseg.nightly_file import read_night

ROOT = Path(__file__).parents[1]
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


BLOCK = r"^ {4,}(tileseg .*)$"
INLINE = "`(tileseg [^`]*)`"


def shown(text, *patterns):
    """Return every command of ours in a text, as words; not what is a synopsis."""
    text = text.replace("\\\n", " ")
    found = re.findall("|".join(patterns), text, re.MULTILINE)
    commands = [shlex.split("".join(each), comments=True)[1:] for each in found]
    return [
        words for words in commands if not re.search(r" \[|\.\.\.", " ".join(words))
    ]


@pytest.mark.parametrize(
    "path",
    [it for it in DOCUMENTS if it.name != "CHANGELOG.md"],
    ids=lambda it: it.name,
)
def test_every_command_that_is_shown_could_be_run(path):
    for words in shown(path.read_text(), BLOCK):
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


def test_every_nights_file_that_is_shown_is_one(tmp_path):
    """Tables that are left out of a part are those of the first."""
    blocks = re.findall(
        r"(?:^ {4,}(?!tileseg|pip).*\n|^\n(?= {4}))+", NIGHTLY, re.MULTILINE
    )
    parts = [part for part in blocks if re.search(r"^ +\[", part, re.MULTILINE)]
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


def test_a_newcomers_first_night(tmp_path, model_path, monkeypatch):
    """Each step of docs/nightly.md as it stands, with a scene and a model."""
    steps, _, _ = NIGHTLY.partition("\n## From a STAC API")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/scenes").mkdir(parents=True)
    shutil.copytree(model_path, tmp_path / "data/models/mine")
    scene = make_scene(tmp_path / "data/scenes/a.tif", random_pixels(60, 51))
    names = {"SCENE": str(scene), "MODEL": "data/models/mine"}
    lines = re.findall(r"^ {7}(?!tileseg)(.*)$", steps, re.MULTILINE)
    file = "\n".join(lines).replace('"/data/', f'"{tmp_path}/data/')
    (tmp_path / "nightly.toml").write_text(file)
    told = []
    for words in shown(steps, BLOCK, INLINE):
        if len(words) > 1:
            words = [names.get(word, word) for word in words]  # noqa: PLW2901
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, (words, result.stderr)
            told.append((words, result.stdout))

    assert [words[0] for words, _ in told] == ["model", "segment", "nightly", "nightly"]
    assert '"runs": true' in told[2][1]
    assert (tmp_path / "data/maps/a/mask.tif").is_file()
    before = snapshot(tmp_path / "data/maps")
    CliRunner().invoke(main, told[3][0])  # do it again: not a byte changes
    assert snapshot(tmp_path / "data/maps") == before
