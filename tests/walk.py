"""A page's commands, run as they stand, in their order."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What a comment stands before is run elsewhere.
_BLOCK = re.compile(r"(?<!-->\n\n)^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def walk(page: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Run a page's blocks of commands; yield each, and what it said on stdout.

    Args:
        page: its text. A comment before a block says that it is run elsewhere.
        folder: stands for the repository's root.

    Raises:
        CalledProcessError: a command failed.
    """
    for part in ("examples", "tileseg"):
        (folder / part).symlink_to(ROOT / part)
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for block in _BLOCK.findall(page):
        done = subprocess.run(
            ["bash", "-ec", block],  # noqa: S607  (whichever is first)
            cwd=folder,
            env=os.environ | {"PATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        yield block, done.stdout
