"""Gather the site's sources: python docs/site/pages.py FOLDER.

Pages are docs/*.md and the READMEs of the repository's parts; the command line, the
fields of files and the Python interface are told by the code. Links between pages stay
links; what leads to any other file of the repository becomes its name: the site has no
repository to lead to.
"""

import posixpath
import re
import shutil
import sys
from pathlib import Path

import fields

ROOT = Path(__file__).parents[2]
BESIDE = {
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "infra/README.md": "infra.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""File of the repository -> page."""

CONTENTS = {
    "Begin": "tutorial examples",
    "How to": "inputs models nightly cluster infra watching",
    "Reference": "reference cli job-file nightly-file training-file run-json card-json"
    " night-json plan-json metrics-json change-json api",
    "How it works": "design performance scale reliability security",
    "More": "changelog contributing",
}

MADE = {
    "cli.md": """# Command line

```{eval-rst}
.. click:: tileseg.cli:main
   :prog: tileseg
   :nested: full
```
""",
    "api.md": """# Python

```{eval-rst}
.. automodule:: tileseg
   :members:
   :imported-members:

.. autoclass:: tileseg.settings.Job
   :members:
   :exclude-members: given, inputs, href
```
""",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def gather(folder: Path) -> None:
    """Write all sources into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conf.py"), folder)
    for path in (ROOT / "docs").glob("*.png"):
        shutil.copy(path, folder)
    pages = {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}
    pages |= BESIDE
    for name, page in pages.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = within(text, name, pages | fields.TOLD)
        if page == "index.md":
            text += "".join(map(_contents, CONTENTS, CONTENTS.values()))
        (folder / page).write_text(text, encoding="utf-8")
    for page, text in {**MADE, **fields.pages()}.items():
        (folder / page).write_text(text, encoding="utf-8")


def _contents(title: str, pages: str) -> str:
    listed = "\n".join(pages.split())
    return f"\n```{{toctree}}\n:caption: {title}\n:hidden:\n\n{listed}\n```\n"


def within(text: str, name: str, pages: dict[str, str]) -> str:
    """Return a file's text with links as the site has them.

    Args:
        text: Markdown.
        name: the file, in the repository.
        pages: file of the repository -> page.
    """

    def mended(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        if page := pages.get(path) or (picture and posixpath.basename(path)):
            return f"{picture}[{words}]({page}{hash_}{anchor})"
        # Whatever is not there stays a link, and Sphinx says so.
        return words if (ROOT / path).exists() else found[0]

    return _LINK.sub(mended, text)


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
