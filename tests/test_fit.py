"""Whether a model fits a scene: bands mapped by name, warnings, and what to do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import web
from affine import Affine
from click.testing import CliRunner
from making import digests, make_card, make_model, make_scene, random_pixels

from tileseg.base.builtin import default_model
from tileseg.cards.architecture import Architecture
from tileseg.cards.drift import statistics_of
from tileseg.cards.item import read_card, to_stac
from tileseg.cli import main
from tileseg.job import run
from tileseg.plans import fit
from tileseg.plans.fit import compare, doubts, with_statistics
from tileseg.plans.task import draft, meet
from tileseg.settings import Job

PIXELS = random_pixels(230, 170)
NAMES = ("blue", "green", "red")


def known():
    """Return what a model knows that was trained on `PIXELS`."""
    valid = (PIXELS > 0).all(axis=0)
    return tuple(map(statistics_of, PIXELS[:, valid] * np.float32(1e-4)))


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "model", gsd=10.0, statistics=known())


@pytest.fixture
def ask(model):
    """Ask on the command line; return exit code, answers by question, JSON, errors."""

    def asked(scene, *words):
        line = [
            "model",
            "check",
            "--model",
            str(model),
            "--scene",
            str(scene),
            "--json",
        ]
        told = CliRunner().invoke(main, [*line, *map(str, words)])
        said = json.loads(told.stdout) if told.stdout else {}
        answers = {item["question"]: item for item in said.get("answers", ())}
        return told.exit_code, answers, said, told.stderr

    return asked


def segmented(scene, model, output, **options):
    facts = {"input": str(scene), "model": str(model), "shard": 96, "precision": "fp32"}
    return run(Job(output=str(output), **{**facts, **options}))


def test_the_scene_it_was_trained_on_fits(ask, tmp_path):
    code, answers, said, err = ask(make_scene(tmp_path / "s.tif", PIXELS))

    assert (code, err, said["verdict"]) == (0, "", "ok")
    order = ["bands", "scale", "dtype", "resolution", "values", "drift"]
    assert order == list(answers)
    assert {item["verdict"] for item in answers.values()} == {"ok"}
    assert said["drift"] == 0
    assert [item["drift"] for item in said["bands"]] == [0, 0, 0]
    assert all(0.01 < item["outside"] < 0.03 for item in said["bands"])


ORDERS = [(2, 1, 0), (0, 3, 2, 1)]


@pytest.mark.parametrize("order", ORDERS)
def test_shuffled_bands_with_names_give_the_same_mask(order, ask, model, tmp_path):
    """The bytes of the raster, the drift of each band; a band too many is no matter."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    nir = random_pixels(230, 170, bands=1, seed=7, nodata=0)
    pixels, names = np.concatenate([PIXELS, nir]), (*NAMES, "nir")
    first = make_scene(plain / "s.tif", PIXELS)
    mixed = make_scene(
        other / "s.tif",
        pixels[list(order)],
        names=[names[at].upper() for at in order],
    )

    for folder, scene in ((plain, first), (other, mixed)):
        record = segmented(scene, model, folder / "out")
        assert record.values["status"] == "complete"
    assert digests(plain / "out") == digests(other / "out")
    code, answers, said, _ = ask(mixed)
    assert (code, said["drift"]) == (0, 0)
    for name in NAMES:
        place = order.index(names.index(name)) + 1
        assert f"band {place} -> {name}" in answers["bands"]["text"]


REFUSED = {
    "unnamed": ({"names": None}, "bands", "bands = [3, 2, 1]"),
    "missing": ({"names": ("blue", "green", "nir")}, "bands", "3: nir"),
    "twice": (
        {"names": ("blue", "green", "green")},
        "bands",
        "more than one band 'green'",
    ),
    "no scale": ({"scale": None}, "scale", "--scale and --offset"),
    "a scale of no number": ({"scale": 0.0}, "scale", "correct its GDAL tags"),
}


@pytest.mark.parametrize(
    ("profile", "question", "words"), REFUSED.values(), ids=REFUSED
)
def test_what_no_job_could_map_is_refused_with_what_to_do(
    profile, question, words, ask, model, tmp_path
):
    """As the job itself refuses it; the other questions are answered all the same."""
    scene = make_scene(tmp_path / "s.tif", PIXELS, **profile)

    code, answers, said, _ = ask(scene)

    assert (code, said["verdict"]) == (2, "refuse")
    assert answers[question]["verdict"] == "refuse"
    assert words in answers[question]["text"]
    assert answers["resolution"]["verdict"] == "ok"
    values = segmented(scene, model, tmp_path / "out").values
    assert values["exit_code"] == 2
    assert words in values["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("profile", "options", "words"),
    [
        ({"scale": 1.0, "offset": 1e-9}, (), "1e4 times too large"),
        ({}, ("--scale", 1), "looks like numbers as stored"),
        ({}, ("--scale", 1e-8), "1e4 times too small"),
        ({"scale": 1.0, "offset": 1e-9}, (), "--scale and --offset"),
    ],
)
def test_another_scale_is_refused(profile, options, words, ask, tmp_path):
    scene = make_scene(tmp_path / "s.tif", PIXELS, **profile)

    code, answers, _, _ = ask(scene, *options)

    assert code == 2
    assert answers["values"]["verdict"] == "refuse"
    assert words in answers["values"]["text"]
    assert "drift" not in answers


def test_a_job_file_says_what_the_scene_does_not(ask, tmp_path):
    """With bands and scale the same scene fits; against its names it warns."""
    bare = make_scene(tmp_path / "s.tif", PIXELS[::-1], names=None, scale=None)
    job = tmp_path / "job.toml"
    job.write_text("bands = [3, 2, 1]\nscale = 1e-4\n")

    code, answers, said, _ = ask(bare, "--config", job)

    assert (code, said["verdict"], said["drift"]) == (0, "ok", 0)
    assert answers["bands"]["text"] == "band 3 -> blue, band 2 -> green, band 1 -> red"
    named = make_scene(tmp_path / "named.tif", PIXELS)
    code, answers, _, _ = ask(named, "--config", job)
    assert (code, answers["bands"]["verdict"]) == (0, "warn")
    assert "band 3 is named red" in answers["bands"]["text"]
    job.write_text("bands = [3, 2]\n")
    code, answers, _, _ = ask(bare, "--config", job)
    assert (code, answers["bands"]["verdict"]) == (2, "refuse")
    assert "needs 3 bands (blue, green, red), got 2" in answers["bands"]["text"]


def test_drift_grows_with_gain_and_haze_and_knows_no_order(ask, tmp_path):
    drifts = []
    for number, (gain, haze) in enumerate([(1, 0), (1.1, 0), (1.5, 900)]):
        pixels = np.where(PIXELS, PIXELS * gain + haze, 0).astype("uint16")
        scene = make_scene(tmp_path / f"{number}.tif", pixels)
        mixed = make_scene(
            tmp_path / f"mixed {number}.tif",
            pixels[[2, 0, 1]],
            names=("red", *NAMES[:2]),
        )
        said, other = ask(scene)[2], ask(mixed)[2]
        drifts.append(said["drift"])
        assert said["drift"] == other["drift"]
        found = [[(b["name"], b["drift"]) for b in it["bands"]] for it in (said, other)]
        assert found[0] == found[1]

    assert drifts[0] == 0
    assert drifts == sorted(set(drifts))
    assert said["verdict"] == "warn"
    assert "look at the mask" in said["answers"][-1]["text"]


@pytest.mark.parametrize(
    ("profile", "question", "words"),
    [
        ({"transform": Affine(30, 0, 5e5, 0, -30, 4.6e6)}, "resolution", "3 times the"),
        ({"crs": None}, "resolution", "does not say its own"),
    ],
)
def test_what_makes_a_worse_mask_is_warned_of(profile, question, words, ask, tmp_path):
    scene = make_scene(tmp_path / "s.tif", PIXELS, **profile)

    code, answers, said, _ = ask(scene)

    assert (code, said["verdict"]) == (0, "warn")
    assert answers[question]["verdict"] == "warn"
    assert words in answers[question]["text"]


def test_whole_numbers_too_coarse_for_the_model_are_warned_of(ask, tmp_path):
    """Ten levels of reflectance, where a standard deviation is less than two."""
    coarse = np.where(PIXELS, 1 + PIXELS // 1000, 0).astype("uint8")
    scene = make_scene(tmp_path / "s.tif", coarse, scale=0.15)

    code, answers, _, _ = ask(scene)

    assert (code, answers["dtype"]["verdict"]) == (0, "warn")
    assert "uint8" in answers["dtype"]["text"]


def test_nodata_everywhere_is_warned_of(ask, tmp_path):
    code, answers, said, _ = ask(make_scene(tmp_path / "s.tif", PIXELS * 0))

    assert (code, said["drift"], said["bands"]) == (0, None, [])
    assert answers["values"]["text"] == "no valid pixel at the places looked at"


def test_a_card_without_statistics_can_tell_less(tmp_path):
    model = make_model(tmp_path / "old", mean=(0.5,) * 3, std=(0.3,) * 3)
    path = make_scene(tmp_path / "s.tif", PIXELS)

    plain = compare(Job(input=str(path), model=str(model)))
    stored = compare(Job(input=str(path), model=str(model), scale=1.0))
    far = compare(Job(input=str(path), model=str(model), scale=1e-4, offset=2.0))

    assert (plain.verdict, plain.drift) == ("ok", None)
    assert "does not say more" in plain.answers[-1].text
    assert stored.verdict == "refuse"
    assert far.verdict == "warn"
    assert "look at scale and offset" in far.answers[-1].text


def test_a_model_that_is_a_program_is_not_run(ask, model, tmp_path):
    """So nobody need trust it; its weights need not even be there."""
    program = Architecture("torchscript", "net", {"batch": None}, 1, 1)
    card = make_card(architecture=program, weights="weights.pt", statistics=known())
    (model / "card.json").write_text(json.dumps(to_stac(card)))
    (model / "weights.safetensors").unlink()

    code, _, said, _ = ask(make_scene(tmp_path / "s.tif", PIXELS))

    assert (code, said["verdict"]) == (0, "ok")


def test_a_scene_that_cannot_be_opened_ends_as_the_job_would(ask, tmp_path):
    (tmp_path / "text.tif").write_text("no raster")

    assert ask(tmp_path / "missing.tif")[0] == 4
    code, _, said, err = ask(tmp_path / "text.tif")
    assert (code, said) == (3, {})
    assert "not a GeoTIFF" in err


def test_every_scene_is_a_line_and_the_worst_one_counts(model, tmp_path):
    make_scene(tmp_path / "a.tif", PIXELS)
    make_scene(tmp_path / "b.tif", PIXELS, names=None)
    (tmp_path / "a b.tif").write_text("no raster")
    line = ["model", "check", "--model", str(model), "--scene", str(tmp_path / "*.tif")]

    plain = CliRunner().invoke(main, line)
    told = CliRunner().invoke(main, [*line, "--json"])

    assert plain.exit_code == told.exit_code == 3
    assert "a b.tif: not a GeoTIFF" in told.stderr
    verdicts = [json.loads(text)["verdict"] for text in told.stdout.splitlines()]
    assert verdicts == ["ok", "refuse"]
    assert "  bands      refuse has no band 'blue'" in plain.stdout


def test_a_scene_on_a_web_server_is_asked_alike(ask, tmp_path):
    (tmp_path / "site").mkdir()
    path = make_scene(tmp_path / "site" / "s.tif", PIXELS)

    with web.serve(tmp_path / "site", tmp_path / "web") as site:
        code, _, said, _ = ask(f"{site.address}/s.tif", "--host", site.host)

    assert code == 0
    assert said["bands"] == ask(path)[2]["bands"]


# Within a job


def test_a_job_says_how_far_its_scene_has_drifted(model, tmp_path):
    plain = make_scene(tmp_path / "plain.tif", PIXELS)
    hazy = make_scene(tmp_path / "hazy.tif", PIXELS, offset=0.4)

    first = segmented(plain, model, tmp_path / "a").values
    second = segmented(hazy, model, tmp_path / "b").values

    assert first["warnings"] == []
    assert second["exit_code"] == 0
    assert any("standard deviations from" in text for text in second["warnings"])
    published = json.loads((tmp_path / "b" / "run.json").read_text())
    assert published["warnings"] == second["warnings"]


def test_another_scale_is_no_reason_to_stop_a_job(model, tmp_path):
    """Whoever says --scale is believed, and told."""
    scene = make_scene(tmp_path / "s.tif", PIXELS)

    values = segmented(scene, model, tmp_path / "out", scale=1.0).values

    assert values["exit_code"] == 0
    assert "1e4 times too large" in values["warnings"][0]


def test_a_job_reads_nothing_more_for_a_model_that_knows_no_values(
    model_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(fit, "sample", None)
    scene = make_scene(tmp_path / "s.tif", PIXELS)

    values = segmented(scene, model_path, tmp_path / "out").values

    assert (values["exit_code"], values["warnings"]) == (0, [])


@pytest.fixture
def half_hazy(tmp_path):
    """A scene whose right half is haze, and a box of degrees in the left one."""
    pixels = np.concatenate([PIXELS, np.where(PIXELS, PIXELS + 20_000, 0)], axis=1)
    scene = make_scene(tmp_path / "s.tif", pixels.astype("uint16"), crs="EPSG:32631")
    with rasterio.open(scene) as dataset:
        west, south, east, north = rasterio.warp.transform_bounds(
            dataset.crs, "EPSG:4326", *dataset.window_bounds(((0, 200), (20, 150)))
        )
    return scene, (west, south, east, north)


def test_only_what_is_asked_for_is_looked_at(model, half_hazy):
    """One half of the scene is haze; the other half alone has not drifted."""
    scene, box = half_hazy
    whole = Job(input=str(scene), model=str(model))
    part = replace(whole, bbox=box)

    found = [doubts(draft(job, *meet(job))) for job in (whole, part)]

    assert found[0][0] != []
    assert found[0][1] > found[1][1]
    assert found[1][0] == []


def test_a_check_looks_at_what_the_job_file_asks_for(ask, half_hazy, tmp_path):
    """And ends as the job would where the scene has nothing of it."""
    scene, box = half_hazy
    near, far = tmp_path / "near.toml", tmp_path / "far.toml"
    near.write_text(f"bbox = {list(box)}")
    far.write_text("bbox = [100.0, 10.0, 101.0, 11.0]")

    whole, part = (ask(scene, *words)[2] for words in ((), ("--config", near)))

    assert (whole["verdict"], part["verdict"]) == ("warn", "ok")
    assert part["drift"] < whole["drift"] / 3
    code, _, _, err = ask(scene, "--config", far)
    assert code == 2
    assert "outside --bbox" in err


def test_statistics_are_of_what_the_job_file_asks_for(half_hazy, tmp_path):
    scene, box = half_hazy
    whole = Job(input=str(scene), model=str(make_model(tmp_path / "plain")))

    (blue, *_), (part, *_) = (
        with_statistics([job]).statistics for job in (whole, replace(whole, bbox=box))
    )

    assert part.quantiles[-1] < 1.01 < blue.quantiles[-1]


# What a model knows


def test_statistics_are_written_into_the_card_and_nowhere_else(tmp_path):
    model = make_model(tmp_path / "model")
    before, weights = read_card(model), (model / "weights.safetensors").read_bytes()
    scene = make_scene(tmp_path / "s.tif", PIXELS)
    line = ["model", "statistics", "--model", str(model), "--scene", str(scene)]

    told = CliRunner().invoke(main, line)

    assert told.exit_code == 0
    card = read_card(model)
    assert card.statistics == known()
    assert card.facts() == before.facts()
    assert (model / "weights.safetensors").read_bytes() == weights
    assert compare(Job(input=str(scene), model=str(model))).drift == 0
    assert "median" in CliRunner().invoke(main, ["model", "info", str(model)]).stdout


def test_several_scenes_are_known_together(tmp_path):
    model = make_model(tmp_path / "model")
    dark = make_scene(tmp_path / "a.tif", PIXELS // 2)
    bright = make_scene(tmp_path / "b.tif", PIXELS)
    line = ["model", "statistics", "--model", str(model)]

    told = CliRunner().invoke(
        main, [*line, "--scene", str(dark), "--scene", str(bright)]
    )

    assert told.exit_code == 0
    for both, one in zip(read_card(model).statistics, known(), strict=True):
        assert both.maximum == one.maximum
        assert both.median < one.median
        assert both.count > one.count
    for scene in (dark, bright):  # each is what it knows, though not what lies between
        assert compare(Job(input=str(scene), model=str(model))).drift == 0
    between = make_scene(tmp_path / "c.tif", PIXELS // 4 * 3)
    assert compare(Job(input=str(between), model=str(model))).drift > 0.2


def test_a_dark_scene_among_bright_ones_is_known(tmp_path):
    """It is few of all pixels: their 1 % is brighter than most of it."""
    model = make_model(tmp_path / "model")
    dark = make_scene(tmp_path / "dark.tif", PIXELS[:, :40, :40] // 9)
    bright = make_scene(tmp_path / "bright.tif", np.tile(PIXELS, (1, 3, 3)))
    line = ["model", "statistics", "--model", str(model)]

    told = CliRunner().invoke(
        main, [*line, "--scene", str(bright), "--scene", str(dark)]
    )

    assert told.exit_code == 0
    for scene in (dark, bright):
        found = compare(Job(input=str(scene), model=str(model)))
        assert all(0 < band.outside < 0.03 for band in found.bands)
    brighter = make_scene(tmp_path / "brighter.tif", PIXELS * 5)
    found = compare(Job(input=str(brighter), model=str(model)))
    assert all(band.outside > 0.5 for band in found.bands)


def test_a_scene_without_data_is_no_statistics(tmp_path):
    model = make_model(tmp_path / "model")
    before = (model / "card.json").read_bytes()
    scene = make_scene(tmp_path / "s.tif", PIXELS * 0)
    line = ["model", "statistics", "--model", str(model), "--scene", str(scene)]

    told = CliRunner().invoke(main, line)

    assert told.exit_code == 2
    assert "no valid pixel" in told.stderr
    assert (model / "card.json").read_bytes() == before


def test_the_example_scene_is_what_our_model_knows():
    scene = default_model().parents[2] / "examples" / "itaipu.tif"

    found = compare(Job(input=str(scene)))

    assert found.verdict == "ok"
    assert found.drift < 0.2  # of its training blocks
    texts, far = doubts(draft(Job(input=str(scene)), *meet(Job(input=str(scene)))))
    assert texts == []
    assert far < 0.2
