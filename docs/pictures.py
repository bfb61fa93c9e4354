"""Take pictures of what docs/tutorial.md makes: `make pictures`.

The tutorial is walked as it stands; each picture is taken as soon as what it shows is
there.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import browser
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from walk import walk

DOCS = Path(__file__).parent
COLOURS = 128
WINDOW = {"width": 1000, "height": 800}


def main(folder: Path) -> None:
    """Walk in a folder; save the pictures beside this file."""
    left = dict(PICTURES)
    with sync_playwright() as driver:
        program, environment = browser.find() or sys.exit("no Chromium: make browser")
        chromium = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"], env=environment
        )
        tab = chromium.new_page(viewport=WINDOW)
        for _ in walk(DOCS / "tutorial.md", folder):
            for name, (file, take) in list(left.items()):
                path = folder / "out" / file
                if path.exists():
                    tab.goto(path.as_uri())
                    save(take(tab) if take else path.read_bytes(), name)
                    del left[name]
        chromium.close()


def save(picture: bytes, name: str) -> None:
    """Write a PNG, made small by few colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    few = image.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(DOCS / f"{name}.png", optimize=True)


def top(tab: Page) -> bytes:
    """Take what a report shows first."""
    tab.wait_for_selector("body[data-ready]")
    return tab.screenshot()


def whole(tab: Page) -> bytes:
    """Take a page from its top to its end."""
    return tab.locator("body").screenshot()


def near(tab: Page) -> bytes:
    """Take a part of the map, through its mask."""
    tab.wait_for_selector("body[data-ready]")
    tab.locator("[data-opacity=mask]").fill("50")
    for key in ("ArrowDown", "ArrowDown", "+", "+"):
        tab.locator("#map").press(key)
        tab.wait_for_timeout(600)  # it moves
    return tab.locator("#map").screenshot()


PICTURES: dict[str, tuple[str, Callable[[Page], bytes] | None]] = {
    "curve": ("my-model/curve.png", None),
    "report": ("first/report.html", top),
    "mask": ("first/report.html", near),
    "score": ("first-score.png", None),
    "night": ("maps/night.html", whole),
    "change": ("change/change.html", top),
}
"""Name -> file in `out`, and how a picture of it is taken; None: it is one."""


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        main(Path(folder))
