"""`report.html` in a browser: it opens without a network, and its map can be used.

`night.html`, which is in its style, too.

Skipped where there is no Chromium: `make browser` brings one.
"""

import shutil
from functools import partial

import browser
import matplotlib.image
import numpy as np
import pytest
import rasterio
from test_report import HEIGHT, HOSTILE, WIDTH, make_hostile, page_facts

from tileseg.base.names import slug
from tileseg.changes.change import Wish, change
from tileseg.changes.pair import find
from tileseg.nights.nightly_entry import Entry
from tileseg.nights.nightly_page import page as night_page
from tileseg.steps.report import report
from tileseg.stores.storage import Disk

pytestmark = pytest.mark.slow

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
OPAQUE = """at => {
    const shown = document.querySelectorAll("canvas.leaflet-image-layer");
    const canvas = [...shown].at(at || 0);
    const {width, height} = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d");
    copy.drawImage(canvas, 0, 0);
    const {data} = copy.getImageData(0, 0, width, height);
    return data.filter((value, i) => i % 4 === 3 && value > 0).length;
}"""
"""Pixels of the first raster that are drawn, of a report its mask; -1: of the last."""


@pytest.fixture(scope="module")
def chromium():
    """A browser; what it would say with dialogs is an error."""
    found = browser.find()
    if found is None:
        pytest.skip("no Chromium: make browser")
    from playwright.sync_api import sync_playwright

    program, environment = found
    with sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"], env=environment
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An output directory with a page that also has holes, and the record's values."""
    output, record = make_hostile(tmp_path_factory.mktemp("page"))
    told = record.told()
    told["failures"] = [
        {"shard": [0, 1], "window": [0, 96, 96, 96], "reason": HOSTILE[0]},
    ]
    told["warnings"] = [HOSTILE[1]]
    page = report(told, *page_facts(output))
    (output / "report.html").write_bytes(page)
    return output, told


@pytest.fixture(scope="module")
def compared(made, tmp_path_factory):
    """A comparison of the mask with itself turned round."""
    other = tmp_path_factory.mktemp("other") / "mask.tif"
    shutil.copy(made[0] / "mask.tif", other)
    with rasterio.open(other, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write(dataset.read(1)[::-1, ::-1], 1)
    output = other.parent / "change"
    wish = Wish(old=find(str(made[0])), new=find(str(other)), output=output)
    return output, change(wish)


@pytest.fixture
def opening(chromium):
    """Open pages; at the end nothing was fetched, said or refused."""
    said, contexts, addresses = [], [], []

    def open_page(path, size=WIDE, scheme="light"):
        context = chromium.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: said.append(request.url))
        addresses.append(path.as_uri())
        page.goto(addresses[-1])
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    others = [text for text in said if not text.startswith("data:image/webp")]
    assert others == addresses


@pytest.fixture
def opened(opening, made):
    """Open the report."""
    return partial(opening, made[0] / "report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_opens_and_fits(opened, size, scheme, tmp_path):
    """Nothing is wider than the window, and something is drawn."""
    page = opened(size, scheme)

    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    picture = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert picture.shape[1] == size["width"]
    assert len(np.unique((255 * picture).round() @ (65536, 256, 1))) > 100  # colours
    is_light = picture[5, 5].mean() > 0.5
    assert is_light == (scheme == "light")


def test_classes_are_shown_one_by_one(opened, made):
    """By the keyboard; what is drawn is as many pixels as the record counts."""
    counts = list(made[1]["pixels"]["by_class"].values())
    page = opened()

    assert page.evaluate(OPAQUE) == sum(counts)
    for value in (0, 2):
        page.focus(f"[data-class='{value}']")
        page.keyboard.press("Space")
    assert page.evaluate(OPAQUE) == counts[1]
    page.click("[data-all=false]")
    assert page.evaluate(OPAQUE) == 0
    page.click("[data-all=true]")
    assert page.evaluate(OPAQUE) == sum(counts)


def test_every_layer_changes_what_is_seen(opened):
    page = opened()
    chart = page.locator("#map")
    names = page.eval_on_selector_all(
        "[data-layer]", "boxes => boxes.map(box => box.dataset.layer)"
    )
    expected = "picture mask confidence entropy probabilities polygons shards failures"
    assert names == expected.split()

    for name in names:
        before = chart.screenshot()
        page.focus(f"[data-layer={name}]")
        page.keyboard.press("Space")
        page.wait_for_timeout(100)
        assert chart.screenshot() != before, name


def test_a_layer_can_be_faded(opened):
    page = opened()
    layer = page.locator("canvas.leaflet-image-layer").first

    page.focus("[data-opacity=mask]")
    page.keyboard.press("Home")

    assert layer.evaluate("canvas => canvas.style.opacity") == "0"


def test_pointing_tells_what_is_there(opened):
    """The place in the scene's coordinates, the class and the values."""
    page = opened()
    box = page.locator("#map").bounding_box()

    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    place, *rest = page.locator("#readout").inner_text().split(" · ")
    x, y = (float(part[2:].replace(",", "")) for part in place.split(", "))
    assert x == pytest.approx(500_000 + 5 * WIDTH, abs=40)
    assert y == pytest.approx(4_600_000 - 5 * HEIGHT, abs=40)
    if rest != ["nodata"]:
        assert rest[0] in HOSTILE
        assert [part.split()[0] for part in rest[1:3]] == ["confidence", "entropy"]
        # The most probable class, as probable as it is certain, then the others.
        assert rest[3].startswith(f"{rest[0]} {rest[1].split()[1]}, ")


def test_probabilities_are_shown_class_by_class(opened):
    page = opened()
    chart = page.locator("#map")
    page.check("[data-layer=probabilities]")
    seen = []
    for value in ("0", "1", "2"):
        page.select_option("[data-band=probabilities]", value)
        seen.append(chart.screenshot())

    assert len(set(seen)) == 3


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_comparison_opens_fits_and_its_layers_work(opening, compared, size):
    """Whatever is unticked is seen no more: changes one by one, layers, classes.

    At first the new mask shows faintly, where nothing changed: else nobody sees where a
    change is.
    """
    output, record = compared
    page = opening(output / "change.html", size)
    chart, counts = page.locator("#map"), record["pixels"]

    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    same, left = counts["unchanged"], counts["undecided"] + counts["too_small"]
    assert min(same, left, counts["changed"]) > 0
    # What only the new mask knows is shown, too.
    assert page.evaluate(OPAQUE) >= same + left + counts["changed"]
    assert page.evaluate(OPAQUE, -1) == left + counts["changed"]
    page.check("[data-legend=change] tr:has-text('unchanged') input")
    assert page.evaluate(OPAQUE, -1) == same + left + counts["changed"]
    page.uncheck("[data-legend=change] tr:has-text('unchanged') input")
    page.uncheck("[data-legend=change] tr:has-text('undecided') input")
    assert page.evaluate(OPAQUE, -1) == counts["changed"]
    page.click("[data-legend=change] [data-all=false]")
    assert page.evaluate(OPAQUE, -1) == 0
    page.click("[data-legend=change] [data-all=true]")
    for action in (
        lambda: page.uncheck("[data-layer=change]"),
        lambda: page.uncheck("[data-layer=new]"),
        lambda: page.check("[data-layer=old]"),
        lambda: page.locator("[data-opacity=old]").fill("30"),
        lambda: page.uncheck("[data-legend='old new'] [data-class='1']"),
    ):
        before = chart.screenshot()
        action()
        page.wait_for_timeout(100)
        assert chart.screenshot() != before
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
    told = page.locator("#readout").inner_text()
    assert all(f"{name}: " in told for name in ("change", "old", "new"))


def test_hostile_names_run_nothing(opened):
    """Neither in the page nor where the map shows them."""
    page = opened()
    box = page.locator("#map").bounding_box()
    page.uncheck("[data-layer=mask]")
    page.check("[data-layer=polygons]")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(200)

    assert page.locator("img:not(.leaflet-image-layer)").count() == 0
    assert page.locator("svg[onload]").count() == 0
    names = page.locator(".classes tbody th").all_inner_texts()
    assert [name.strip() for name in names] == list(HOSTILE)


def test_everything_that_can_be_used_has_a_name(opened):
    page = opened()

    unnamed = page.eval_on_selector_all(
        "input, button, a, [role]",
        "all => all.filter(it => !(it.labels?.length || it.ariaLabel"
        " || it.textContent.trim())).map(it => it.outerHTML)",
    )

    assert unnamed == []


LINES_OF_A_DATE = "[...document.querySelector('.scenes time').getClientRects()]"
NIGHT_STATES = (
    *("failed", "given_up", "parked", "partial"),
    *("waiting", "later", "released", "done", "unchanged"),
)


@pytest.fixture(scope="module")
def night(made, tmp_path_factory):
    """A night's page, of a scene of each state and with hostile names."""
    folder = tmp_path_factory.mktemp("night")
    names = [f"{HOSTILE[0]} {state}" for state in NIGHT_STATES]
    products = ("report.html", "quicklook.png")
    known = {"mark": "", "asked": "", "night": "2026-05-31", "products": products}
    hrefs = [f"https://example.org/{'long/' * 40}{name}.tif" for name in names]
    scenes = {
        slug(name): Entry(**known, scene=href, state=state)
        for name, href, state in zip(names, hrefs, NIGHT_STATES, strict=True)
    }
    blank = dict.fromkeys(("error", "seconds", "tiles", "bytes", "next"))
    rows = [
        {
            **blank,
            "scene": href,
            "name": slug(name),
            "state": state,
            "attempts": 4,
        }
        for name, href, state in zip(names, hrefs, NIGHT_STATES, strict=True)
    ]
    rows[0] |= {"error": HOSTILE[1], "next": "2026-06-01"}
    rows[5] |= {"seconds": 4211.0, "tiles": 123_456, "bytes": 98_765_432}
    for name, entry in scenes.items():
        home = folder / (f"{name}.parked" if entry.state == "parked" else name)
        home.mkdir()
        for product in products:
            (home / product).write_bytes((made[0] / product).read_bytes())
    counts = {"scenes": len(rows), "kept": 0, **dict.fromkeys(NIGHT_STATES, 1)}
    summary = {
        "night": "2026-05-31",
        "started": "2026-05-31T22:00:00+02:00",
        "deadline": "2026-06-01T05:30:00+02:00",
        "exit_code": 3,
        "counts": counts,
        "device_minutes": 70.2,
        "bytes": 98_765_432,
        "spent": {"device_seconds": 4212.0, "kwh": 0.0004, "cost": 1234.5},
        "warnings": [f"{HOSTILE[1]}: holds no scene"],
        "scenes": rows,
    }
    (folder / "night.html").write_bytes(night_page(summary, Disk(folder), scenes))
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_nights_page_fits_and_leads_to_reports(
    chromium, night, size, scheme, tmp_path
):
    """Nothing is fetched but the page itself, and no name in it does anything."""
    said = []
    context = chromium.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: said.append(request.url))
    page.goto((night / "night.html").as_uri())

    page.screenshot(path=tmp_path / "night.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
    states = page.locator(".scenes .badge").all_inner_texts()
    assert states[0] == "failed"
    assert len(states) == len(NIGHT_STATES)
    figures = page.locator(".figures li").all_inner_texts()
    told = [text.split() for text in figures]
    assert ["<0.001", "kWh"] in told
    assert ["1,234.50", "cost"] in told
    assert len(page.evaluate(LINES_OF_A_DATE)) == 1
    loaded = "pictures => pictures.map(it => it.naturalWidth)"
    assert all(page.eval_on_selector_all(".scenes img", loaded))
    assert page.locator(".scenes img").count() == 4  # parked, partial, released, done
    assert page.locator(".scenes .trouble").inner_text() == HOSTILE[1]
    others = [text for text in said if not text.startswith("data:image/webp")]
    assert others == [(night / "night.html").as_uri()]
    page.locator(".scenes a").first.click()
    page.wait_for_selector("body[data-ready]")
    context.close()
