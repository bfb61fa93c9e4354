"""Several models in one job: what they must share, and what is said of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from making import (
    digests,
    job_maker,
    make_card,
    make_model,
    make_scene,
    random_pixels,
    read,
    stop_after,
    succeed,
)

import tileseg
from tileseg.cards.ensemble import Channel, Ensemble
from tileseg.cli import main
from tileseg.engines.resolve import _in_numbers
from tileseg.engines.worker import Recipe
from tileseg.errors import ExitCode, UsageError
from tileseg.job import run
from tileseg.network.device import resolve_device
from tileseg.plans.ledger import Ledger, Plan
from tileseg.plans.task import prepare
from tileseg.settings import LAYERS
from tileseg.stores.storage import Disk

CARD = make_card()
OTHER = replace(CARD, name="other", version="2", sha256="1" * 64)
HEIGHT, WIDTH = 150, 110
ALL = dict.fromkeys(LAYERS, True)


# What they must share


CLASSES = CARD.classes
RENAMED = (replace(CLASSES[0], name="sea"), *CLASSES[1:])
SWAPPED = (replace(CLASSES[0], name="class 1"), replace(CLASSES[1], name="class 0"))
FIRST = "the first one class 0, class 1, class 2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": CARD.sha256}, "the weights of one before it"),
        ({"halo": 8}, "a halo of 8, the first one a halo of 4"),
        ({"tile": 64, "halo": 8}, "a tile of 64, the first one a tile of 32"),
        ({"unit": "dn"}, "unit dn, the first one unit reflectance"),
        ({"classes": RENAMED}, f"the classes sea, class 1, class 2, {FIRST}"),
        (
            {"classes": (*SWAPPED, CLASSES[2])},
            f"the classes class 1, class 0, class 2, {FIRST}",
        ),
        (
            {"classes": CLASSES[:2], "outputs": 2},
            f"the classes class 0, class 1, {FIRST}",
        ),
    ],
)
def test_models_whose_answers_have_no_average_are_refused(changes, said):
    """In one line that says which, what it has, and what was wanted."""
    third = replace(OTHER, **{"name": "third", "sha256": "2" * 64, **changes})

    with pytest.raises(UsageError) as caught:
        Ensemble(("", "", ""), (CARD, OTHER, third))

    assert str(caught.value).startswith(f"--model: the third one (third 2) has {said}")
    assert "\n" not in str(caught.value)


def test_one_logit_and_two_have_no_average():
    two = make_card(outputs=2)
    one = replace(two, outputs=1, sha256="1" * 64)

    with pytest.raises(UsageError, match=r"has 1 logit.* the first one 2 logit"):
        Ensemble(("", ""), (two, one))


def test_what_decides_no_value_may_differ():
    """Colours, resolution and size are each model's own; the first one's colours."""
    classes = tuple(replace(item, color="123456") for item in CARD.classes)
    other = replace(OTHER, classes=classes, gsd=3.0, about={"a": 1})

    ensemble = Ensemble(("", ""), (CARD, other), "d4")

    assert ensemble.card == CARD
    assert (ensemble.forwards, ensemble.title) == (16, "test 1 + other 2")


def test_every_channel_is_made_once():
    """Of a band that two models scale alike; and each finds its own in its order."""
    turned = replace(OTHER, bands=("red", "blue"), mean=(0.3, 0.3), std=(0.2, 0.2))
    more = replace(
        OTHER, sha256="2" * 64, bands=("nir", "red"), mean=(0.1, 0.4), std=(1.0, 0.2)
    )

    ensemble = Ensemble(("",) * 3, (CARD, turned, more))

    assert ensemble.bands == ("blue", "green", "red", "nir")
    assert ensemble.channels == (
        *(Channel(band, 0.3, 0.2) for band in range(3)),
        Channel(3, 0.1, 1.0),
        Channel(2, 0.4, 0.2),
    )
    assert list(ensemble.shown()) == [(0, 1, 2), (2, 0), (3, 4)]


# In a job


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return make_scene(folder / "scene.tif", random_pixels(HEIGHT, WIDTH, bands=4))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of other sizes, bands and scalings."""
    folder = tmp_path_factory.mktemp("models")
    facts = {"bands": ("nir", "red"), "mean": (0.2, 0.4), "std": (0.1, 0.3)}
    return (
        str(make_model(folder / "one")),
        str(make_model(folder / "two", seed=1, name="two", width=6, **facts)),
    )


@pytest.fixture
def job(tmp_path, scene, models):
    return job_maker(tmp_path, scene, models, shard=96, tta="d4")


@pytest.mark.parametrize("blend", ["crop", "cosine"])
def test_a_stopped_job_resumes_to_the_same_bytes(job, blend):
    whole = job("whole", blend=blend, workers=1, **ALL)
    parts = job("parts", blend=blend, workers=2, run_shards=(1, 1), **ALL)

    succeed(whole)
    first = run(parts, stop_after(parts, 2))
    second = succeed(parts)

    assert first.values["exit_code"] == ExitCode.PREEMPTED
    assert second["counts"]["shards_reused"] == 2
    names = {"mask.tif", *(f"{name}.tif" for name in LAYERS)}
    assert names == set(digests(whole.output_path))
    assert digests(whole.output_path) == digests(parts.output_path)


def test_products_say_what_they_are_of(job, models):
    values = succeed(job(**ALL))

    member = [
        {key: prepare(job(model=one)).card.facts()[key] for key in
         ("name", "version", "sha256")} for one in models
    ]  # fmt: skip
    assert values["model"]["members"] == member
    assert values["model"]["name"] == "test + two"
    assert values["model"]["tta"] == "d4"
    assert values["estimate"]["forwards"] == 16 * values["estimate"]["tiles"]
    mask = read(job().output_path / "mask.tif")
    for name in ("mask", *LAYERS):
        with rasterio.open(job().output_path / f"{name}.tif") as dataset:
            tags, layer = dataset.tags(), dataset.read(1)
            assert (tags["MODEL"], tags["TTA"]) == ("test 1 + two 1", "d4")
            assert tags["MODEL_SHA256"] == values["model"]["sha256"]
            assert set(dataset.scales) == {1 if name == "mask" else 1 / 254}
            assert dataset.nodata == 255
            np.testing.assert_array_equal(mask == 255, layer == 255)
            bands = dataset.descriptions
            told = [dataset.tags(band) for band in dataset.indexes]
    assert bands == tuple(item.name for item in prepare(job()).card.classes)
    item = json.loads((job().output_path / "item.json").read_text())
    said = item["assets"]["probabilities"]["bands"]
    assert [band["name"] for band in said] == list(bands)
    means = [band["statistics"]["mean"] for band in said]
    assert means == [float(tags["STATISTICS_MEAN"]) for tags in told]
    classes = item["assets"]["mask"]["classification:classes"]
    assert [it["count"] for it in classes if "count" in it] == [
        (mask == value).sum() for value in range(3)
    ]


def test_layers_are_what_their_definitions_say(job):
    """Of one logit p is confidence: the margin is 2 p - 1, the entropy H(p)."""
    folder = make_model(job().output_path.parent / "model", outputs=1)

    succeed(job(model=str(folder), **ALL))

    layers = [read(job().output_path / f"{name}.tif") for name in LAYERS[:3]]
    p, margin, entropy = (layer[layer != 255] / 254 for layer in layers)
    assert len(np.unique(p)) > 20
    assert np.abs(margin - (2 * p - 1)).max() < 2 / 254
    q = np.clip(1 - p, 1e-9, 1)
    bits = -p * np.log2(p) - q * np.log2(q)
    is_flat = p < 0.95  # where a step of p is few steps of the entropy
    assert np.abs(entropy - bits)[is_flat].max() < 4 / 254


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_probabilities_are_of_the_mask_and_add_up(job, outputs, blend):
    """The class of the mask is the most probable one, as probable as it is certain."""
    folder = make_model(job().output_path.parent / "model", outputs=outputs)

    succeed(job(model=str(folder), tta="none", blend=blend, **ALL))

    names = "mask", "confidence", "margin"
    mask, sure, margin = (read(job().output_path / f"{it}.tif") for it in names)
    with rasterio.open(job().output_path / "probabilities.tif") as dataset:
        chances = dataset.read().astype(int)
    is_known = mask != 255
    labels = np.where(is_known, mask, 0).astype(int)
    own = np.take_along_axis(chances, labels[None], axis=0)[0]
    assert len(chances) == max(2, outputs)
    assert len(np.unique(mask)) > 2
    assert (chances[:, ~is_known] == 255).all()
    np.testing.assert_array_equal(own[is_known], sure[is_known])
    np.testing.assert_array_equal(own, chances.max(axis=0))
    is_clear = is_known & (margin > 1)
    assert is_clear.mean() > 0.7
    np.testing.assert_array_equal(chances.argmax(axis=0)[is_clear], mask[is_clear])
    assert abs(chances.sum(axis=0) - 254)[is_known].max() <= len(chances) / 2


@pytest.mark.parametrize("wish", [*({name: True} for name in LAYERS), ALL, {}])
def test_a_layer_is_the_same_whatever_else_is_asked_for(job, wish):
    """And there is nothing that was not asked for."""
    succeed(job("all", tta="none", **ALL))
    succeed(job("some", tta="none", **wish))

    every, some = (digests(job(name).output_path) for name in ("all", "some"))
    assert some.keys() == {"mask.tif", *(f"{name}.tif" for name in wish)}
    assert some.items() <= every.items()


def test_another_average_is_another_plan(job, models, tmp_path):
    """Nothing of one is taken for the other, in one work directory."""
    asked = (
        {"tta": "none"},
        {},
        {"model": models[0]},
        {"model": models[0], "tta": "none"},
        {"model": models[::-1]},
        {"margin": True},
        {"entropy": True},
    )
    ids = {prepare(job(**wish)).request_id for wish in asked}
    work = str(tmp_path / "work")
    stopped = job(work=work)
    run(stopped, stop_after(stopped, 2))

    values = succeed(job("other", work=work, tta="none"))

    assert len(ids) == len(asked)
    assert values["counts"]["shards_reused"] == 0


def test_where_two_models_agree_so_does_their_mean(job, tmp_path):
    """Of one class: both above or both below a half."""
    folders = [
        str(make_model(tmp_path / f"{seed}", seed=seed, outputs=1)) for seed in (0, 1)
    ]
    wishes = {"both": tuple(folders), "one": folders[0], "two": folders[1]}
    for name, model in wishes.items():
        succeed(job(name, model=model, tta="none", precision="fp32"))

    both, one, two = (read(job(name).output_path / "mask.tif") for name in wishes)
    is_agreed = one == two
    np.testing.assert_array_equal(one[is_agreed], both[is_agreed])
    apart = both[~is_agreed], one[~is_agreed]
    assert 0 < (apart[0] == apart[1]).mean() < 1


def test_bands_are_listed_in_the_order_of_the_ensemble(job, tmp_path):
    """Those of the first model, then what the second one adds."""
    pixels = random_pixels(HEIGHT, WIDTH, bands=4)[[3, 2, 1, 0]]
    plain = make_scene(tmp_path / "plain.tif", pixels, names=None)

    succeed(job("named"))
    succeed(job("listed", input=str(plain), bands=(4, 3, 2, 1)))

    named, listed = (read(job(name).output_path / "mask.tif") for name in
                     ("named", "listed"))  # fmt: skip
    np.testing.assert_array_equal(named, listed)
    refused = run(job("few", input=str(plain), bands=(4, 3, 2)))
    assert refused.values["exit_code"] == ExitCode.USAGE
    assert "the models need 4 bands (blue, green, red, nir)" in str(refused.error)


def test_the_card_of_both_must_say_one_resolution(job):
    with pytest.raises(UsageError, match="resolution card"):
        prepare(job(resolution="card"))


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_one_archive_that_knows_fp32_only_decides_for_all(job, asked):
    """Its answers are averaged with the others', which are computed likewise."""
    task = prepare(job(precision=asked))
    first, second = task.ensemble.cards
    archive = replace(second.architecture, kind="onnx")
    cards = first, replace(second, architecture=archive)
    task = replace(task, ensemble=replace(task.ensemble, cards=cards))

    if asked == "auto":
        assert _in_numbers(task).precision == "fp32"
    else:
        with pytest.raises(UsageError, match="--precision bf16: two is an archive"):
            _in_numbers(task)


def test_a_worker_may_be_silent_for_as_many_forwards_longer(job, tmp_path):
    """A batch is so many times as long under way before a tile of it is done."""
    task = prepare(job())
    plan = Plan(task.request, {"batch_size": 1})
    recipe = Recipe.of(task, Ledger(Disk(tmp_path / "work"), plan), resolve_device())

    assert recipe.patience(60) == 16 * 60
    assert replace(recipe, folder="s3://maps/work").patience(60) > 16 * 60


# At the command line


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_line_takes_several_models(scene, models, tmp_path):
    output = tmp_path / "cli"
    words = ["--input", scene, "--output", output, "--tta", "d4", "--margin"]

    told = call("segment", *words, "--model", models[0], "--model", models[1])
    again = call("segment", "--config", output / "run.json")

    values = json.loads(told.stdout)
    assert (told.exit_code, again.exit_code) == (0, 0)
    assert values["job"]["model"] == list(models)
    assert {item["path"] for item in values["outputs"]} >= {"mask.tif", "margin.tif"}
    assert json.loads(again.stdout)["plan_id"] == values["plan_id"]


def test_a_job_file_and_python_take_lists(scene, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = f'model = {list(models)}\ntta = "d4"\noutput = "file"\nentropy = true\n'
    (tmp_path / "job.toml").write_text(text.replace("'", '"'))

    told = call("segment", "--input", scene, "--config", "job.toml")
    values = tileseg.segment(
        scene, model=list(models), tta="d4", output="here", entropy=True
    )

    assert told.exit_code == 0
    assert json.loads(told.stdout)["request_id"] == values["request_id"]


def test_what_it_costs_is_said_before(job, scene, models):
    words = ["--input", scene, "--output", job().output_path, "--dry-run"]
    plain = json.loads(call("segment", *words, "--model", models[0]).stdout)
    models = ["--model", models[0], "--model", models[1]]

    told = call("segment", *words, *models, "--tta", "d4")

    both = json.loads(told.stdout)["estimate"]
    assert "tiles that are forwarded 16 times" in told.stderr
    assert both["tiles"] == plain["estimate"]["tiles"] == plain["estimate"]["forwards"]
    assert both["memory_mb"] > plain["estimate"]["memory_mb"]


def test_a_check_looks_at_every_model(scene, models):
    told = call("check", scene, "--model", models[0], "--model", models[1])

    assert told.exit_code == 0
    assert "model  test 1, 3 classes" in told.stdout
    assert "model  two 1, 3 classes" in told.stdout
    assert "nir from band 4" in told.stdout


def test_models_that_do_not_fit_are_a_usage_error(scene, models, tmp_path):
    odd = make_model(tmp_path / "odd", seed=3, halo=8)

    told = call("segment", "--input", scene, "--model", models[0], "--model", odd)

    assert told.exit_code == ExitCode.USAGE
    assert told.stderr.count("\n") == 1
    assert "a halo of 8, the first one a halo of 4" in told.stderr
