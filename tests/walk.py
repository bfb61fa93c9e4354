"""The commands of a page: which there are, and all of them run as they stand.

Before a block may stand

    <!-- not run: why -->
    <!-- run: a file of the repository that does it, another -->
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- (run|not run): (.+?) -->\s*")
SHELL = ("sh", "bash", "console", "shell", "")


@dataclass(frozen=True)
class Block:
    """Commands that stand together in a document."""

    line: int
    text: str
    is_python: bool
    mark: tuple[str, str] | None
    """What stands before it: `run` or `not run`, and where or why."""


def blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks of commands of a document; a file's text is none."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type not in ("fence", "code_block") or _is_toml(token.content):
            continue
        language = token.info.strip()
        if language == "python" or language in SHELL:
            said = before and before.type == "html_block" and MARK.match(before.content)
            mark = said.groups() if said else None
            yield Block(token.map[0] + 1, token.content, language == "python", mark)


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


def walk(path: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run a page's blocks that have no mark; yield each, and what it said on stdout.

    Args:
        path: the page.
        folder: stands for the repository's root.

    Raises:
        CalledProcessError: a command failed.
    """
    for part in ("examples", "tileseg"):
        (folder / part).symlink_to(ROOT / part)
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for block in blocks(path):
        if block.mark:
            continue
        done = subprocess.run(
            ["bash", "-ec", block.text],  # noqa: S607  (whichever is first)
            cwd=folder,
            env=os.environ | {"PATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield block.text, done.stdout
