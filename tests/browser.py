"""The Chromium that tests look at pages with: `make browser` unpacks it.

python tests/browser.py FOLDER
"""

import io
import shutil
import sys
import tarfile
from pathlib import Path

import brotli

HOME = Path(__file__).parents[1] / ".venv" / "browser"
NAMES = ("chromium", "google-chrome", "chromium-browser")


def unpack(folder: Path) -> None:
    """Unpack what npm brought into the folder, with its libraries and fonts."""
    packed = folder / "node_modules" / "@sparticuz" / "chromium" / "bin"
    for name in ("al2023", "fonts", "swiftshader"):
        data = brotli.decompress((packed / f"{name}.tar.br").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
    fonts = folder / "fonts.conf"
    fonts.write_text(
        fonts.read_text().replace("/opt/fonts", f"{folder.resolve()}/fonts")
    )
    program = folder / "chromium"
    program.write_bytes(brotli.decompress((packed / "chromium.br").read_bytes()))
    program.chmod(0o755)
    shutil.rmtree(folder / "node_modules")


def find() -> tuple[str, dict[str, str]] | None:
    """Return the program and its environment: ours, else the system's, else None."""
    if (own := HOME / "chromium").exists():
        fonts = {"FONTCONFIG_PATH": str(HOME), "HOME": str(HOME)}
        return str(own), {"LD_LIBRARY_PATH": str(HOME / "lib"), **fonts}
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found and (found, {})


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
