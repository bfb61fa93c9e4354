"""Training: scenes and labels to a model folder, whatever happens on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from making import make_model, make_scene
from test_evaluate import write

import tileseg
from tileseg.base.stopping import Stop, StopSignal
from tileseg.cards.item import read_card, write_card
from tileseg.cli import main
from tileseg.errors import (
    InputError,
    ModelError,
    OtherPlanError,
    PreemptedError,
    UsageError,
)
from tileseg.evaluation.scores import plain
from tileseg.network.model import load_module, round_weights
from tileseg.stores.storage import Disk
from tileseg.training.split import TEST, VALIDATION
from tileseg.training.survey import survey
from tileseg.training.train import train
from tileseg.training.train_loop import Loop, rate_at
from tileseg.training.train_settings import Training

ROOT = Path(__file__).parents[1]
SHAPE = 230, 170
SMALL = {
    "tile": 16, "halo": 2, "width": 4, "depth": 1, "block": 32, "epochs": 3, "steps": 4,
    "batch_size": 3, "learning_rate": 0.02, "judged": 20,
}  # fmt: skip


@pytest.fixture
def training(tmp_path):
    return prepared(tmp_path)


def prepared(tmp_path, **changes):
    """Dark on the left, bright on the right, nodata below; labelled here and there."""
    random = np.random.default_rng(0)
    rows, cols = np.indices(SHAPE)
    pixels = np.where(cols < 80, 1000, 6000) + random.integers(0, 500, (3, *SHAPE))
    pixels[:, 220:] = 0
    scene = make_scene(tmp_path / "scene.tif", pixels.astype("uint16"))
    classes = np.where((rows // 9 + cols // 9) % 3, 255, cols >= 80).astype(np.uint8)
    labels = write(tmp_path / "labels.tif", classes, tags=("dark", "bright"))
    facts = {"labels": (labels,), "to": str(tmp_path / "model"), **SMALL, **changes}
    return Training(scenes=(str(scene),), **facts)


def made(training):
    """Return the weights that a training left."""
    return (training.folder / "weights.safetensors").read_bytes()


def elsewhere(training, name, **changes):
    return replace(training, to=str(training.folder.with_name(name)), **changes)


def test_a_network_learns_what_the_labels_show(training, tmp_path):
    """The folder works as a model, and gives back the two halves of the scene."""
    card = train(replace(training, epochs=5, steps=15))

    assert card == read_card(training.folder)
    assert [item.name for item in card.classes] == ["dark", "bright"]
    record = tileseg.segment(
        training.scenes[0], model=training.to, output=str(tmp_path / "out")
    )
    counts = record["pixels"]
    assert counts["nodata"] == 10 * 170
    assert counts["by_class"]["dark"] == pytest.approx(220 * 80, rel=0.05)
    metrics = json.loads((training.folder / "metrics.json").read_text())
    assert metrics["test"]["macro_f1"] > 0.95
    assert metrics["validation"]["macro_f1"] == pytest.approx(
        metrics["epochs"][metrics["best_epoch"] - 1]["macro_f1"], abs=0.01
    )
    assert (training.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not training.work.exists()


def test_the_card_says_what_it_was_trained_on_and_how_sure_it_is(training):
    card = train(training)

    red = read_card(training.folder).statistics[2]
    assert red == card.statistics[2]
    assert card.mean == tuple(band.mean for band in card.statistics)
    assert 0.1 < red.quantiles[0] < red.median < red.quantiles[-1] < 0.7
    assert (
        card.temperature
        == json.loads((training.folder / "metrics.json").read_text())["temperature"]
    )
    assert card.facts().keys().isdisjoint({"temperature", "statistics"})


def test_bf16_holds_the_weights_and_the_scores_are_theirs(training):
    """To the last bit: what is judged is what is written, rounded and calibrated."""
    card = train(training)

    network = load_module(training.folder, card)
    assert card.temperature != 1
    for name, weights in network.state_dict().items():
        assert torch.equal(weights, weights.bfloat16().float()), name
    settled, work = training.settled(), Disk(training.work)
    loop = Loop(settled, survey(settled, None, work), network, Stop())
    metrics = json.loads((training.folder / "metrics.json").read_text())
    for name, part in (("validation", VALIDATION), ("test", TEST)):
        assert metrics[name] == plain(loop.judge(part).scores())


def test_the_same_again_gives_the_same_bytes_and_another_seed_others(training):
    for name, changes in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        train(elsewhere(training, name, **changes))

    one, two, other = (made(elsewhere(training, name)) for name in "abc")
    assert one == two
    assert one != other


def test_a_training_that_was_asked_to_stop_ends_as_if_it_had_not(training):
    """After the first step of an epoch, and after its last, before it is judged."""
    train(elsewhere(training, "whole"))

    for stops in range(1, 12):
        stop = Stop()

        def told(done, _total, stop=stop):
            if done // 3 % 4 in (0, 1):
                stop.ask(PreemptedError("stopped by the test"))

        try:
            train(training, stop, told)
        except StopSignal:
            assert stops < 7
            continue
        break

    assert stops == 7
    assert made(training) == made(elsewhere(training, "whole"))


class Sudden(Stop):
    """A wish that comes in the middle of judging, which asks for it."""

    def obey(self, grace):
        self.ask(PreemptedError("stopped by the test"))
        return super().obey(grace)


def test_judging_ends_at_once_and_is_done_again(training):
    train(elsewhere(training, "whole"))

    for _ in range(2):
        with pytest.raises(StopSignal):
            train(training, Sudden())
        state = torch.load(training.work / "checkpoint.pt", weights_only=True)
        assert state["progress"]["epochs"] == []
    train(training)

    assert made(training) == made(elsewhere(training, "whole"))


SCRIPT = """
import sys
from tileseg.cli import main
main(sys.argv[1:])
"""


def begin(training):
    """Begin a training as a process of its own."""
    options = [f"--{key.replace('_', '-')}={value}" for key, value in (
        ("scene", training.scenes[0]), ("labels", training.labels[0]),
        ("to", training.to), ("config", training.folder.with_name("small.toml")),
    )]  # fmt: skip
    lines = [f"{key} = {value}" for key, value in SMALL.items() if key != "epochs"]
    lines += [f"epochs = {training.epochs}"]
    training.folder.with_name("small.toml").write_text("\n".join(lines))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "train", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_work(training, process):
    """Wait until a checkpoint was written."""
    until = time.monotonic() + 120
    while not (training.work / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_end(training):
    """SIGKILL, then SIGTERM (exit 75), then to the end: the bytes of one without."""
    training = replace(training, epochs=30)
    whole = elsewhere(training, "whole")
    undisturbed = begin(whole)
    with begin(training) as process:
        wait_for_work(training, process)
        process.kill()
    before = (training.work / "checkpoint.pt").stat().st_mtime_ns
    with begin(training) as process:
        while (training.work / "checkpoint.pt").stat().st_mtime_ns == before:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate()
        assert process.returncode == 75, told
        assert "the same command resumes" in told
    assert not training.folder.exists()
    with begin(training) as process:
        said, told = process.communicate()

    assert process.returncode == 0, told
    assert "validation" in json.loads(said)
    undisturbed.communicate()
    assert made(training) == made(whole)


MEASURE = """
import re, sys
from pathlib import Path
from tileseg.training.train import train
from tileseg.training.train_settings import Training
scene, labels, to = sys.argv[1:]
train(Training(scenes=(scene,), labels=(labels,), to=to, unit="dn", tile=64, halo=8,
    width=4, depth=2, epochs=1, steps=3, judged=8, classes=("water", "land")))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.alone
def test_memory_does_not_grow_with_the_scene(tmp_path):
    """Sixteen times the pixels: GDAL's cache of 64 MiB is full, which it was not."""
    peaks = []
    for side in (2048, 8192):
        row = np.random.default_rng(0).integers(1, 9999, side)
        pixels = np.broadcast_to(row.astype("uint16"), (3, side, side))
        scene = make_scene(
            tmp_path / f"{side}.tif", pixels, blockxsize=512, blockysize=512
        )
        known = np.broadcast_to((row > 5000).astype(np.uint8), (side, side))
        labels = write(
            tmp_path / f"{side}_labels.tif", known, tiled=True, compress="deflate"
        )
        said = subprocess.run(
            [sys.executable, "-c", MEASURE, scene, labels, tmp_path / f"{side}"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks.append(int(said.stdout) / 1e3)

    assert peaks[1] - peaks[0] < 100, peaks


def test_a_complete_training_is_not_done_again(training, caplog):
    train(training)
    before = (training.folder / "card.json").stat().st_mtime_ns
    caplog.set_level("INFO")

    assert train(training) == read_card(training.folder)

    assert "nothing to do" in caplog.text
    assert (training.folder / "card.json").stat().st_mtime_ns == before


def test_another_model_is_replaced_only_if_asked(training):
    train(training)
    other = replace(training, seed=1)

    with pytest.raises(OtherPlanError, match="--overwrite"):
        train(other)
    train(replace(other, overwrite=True))

    train(elsewhere(other, "b"))
    assert made(other) == made(elsewhere(other, "b"))


def stopped(training):
    """Stop a training after its first step."""
    stop = Stop()
    with pytest.raises(StopSignal):
        train(training, stop, lambda *_: stop.ask(PreemptedError("stopped")))


def test_anothers_work_is_given_up_only_if_asked(training):
    stopped(training)
    other = replace(training, seed=1)

    with pytest.raises(OtherPlanError, match="give it up with --overwrite"):
        train(other)
    train(replace(other, overwrite=True))

    assert training.folder.exists()


def test_other_labels_are_another_training(training):
    """Also where no count of a block says so; a file of the same bytes is the same."""
    stopped(training)
    path = Path(training.labels[0])
    data = path.read_bytes()
    with rasterio.open(path, "r+") as labels:
        window = rasterio.windows.Window(64, 0, 32, 32)
        dark_and_bright = labels.read(1, window=window)
        labels.write(dark_and_bright[::-1], 1, window=window)

    with pytest.raises(OtherPlanError, match="other data"):
        train(training)
    path.write_bytes(data)
    train(training)

    assert training.folder.exists()


def test_a_damaged_or_hostile_checkpoint_is_refused(training):
    class Program:
        def __reduce__(self):
            return print, ("run by a checkpoint",)

    stopped(training)
    path = training.work / "checkpoint.pt"
    data = path.read_bytes()
    for bad in (data[: len(data) // 2], b"", None):
        if bad is None:
            torch.save({"key": Program()}, path)
        else:
            path.write_bytes(bad)
        with pytest.raises(InputError, match=r"checkpoint.*remove it"):
            train(training)


def test_going_on_from_a_model_with_its_scaling_and_classes(training):
    base = replace(train(training), fields=(1,))
    write_card(training.folder, base)
    more = elsewhere(training, "more", base=training.to, epochs=1, seed=3)

    card = train(more)

    assert (card.mean, card.std, card.classes) == (base.mean, base.std, base.classes)
    assert card.fields == (1,)
    assert card.about["base"].endswith(base.sha256)
    first = json.loads((training.folder / "metrics.json").read_text())["epochs"][0]
    then = json.loads((more.folder / "metrics.json").read_text())["epochs"][0]
    assert then["loss"] < first["loss"]


def test_what_a_base_decides_is_the_bases(training, tmp_path):
    """Nobody has to say it again; a tile and a halo of other sizes are the card's."""
    base = make_model(tmp_path / "base", width=3, depth=1, tile=24, halo=3)
    unsaid = dict.fromkeys(("width", "depth", "tile", "halo"))
    more = {"base": str(base), "block": 40, "epochs": 1, "steps": 1}
    more["classes"] = ("dark", "bright")

    card = train(replace(training, **unsaid, **more))

    known = read_card(base)
    for name in ("unit", "tile", "halo", "architecture", "mean"):
        assert getattr(card, name) == getattr(known, name), name
    said = json.loads((training.folder / "metrics.json").read_text())["training"]
    assert (said["width"], said["tile"], said["unit"]) == (3, 24, "reflectance")


@pytest.mark.parametrize(
    ("name", "got"),
    [("width", 8), ("depth", 3), ("tile", 64), ("halo", 2), ("unit", "dn")],
)
def test_what_contradicts_the_base_is_refused(training, tmp_path, name, got):
    base = str(make_model(tmp_path / "base"))
    known = {"width": 4, "depth": 2, "tile": 32, "halo": 4, "unit": "reflectance"}
    asked = {**known, name: got, "base": base, "block": 64}

    text = f"^{name}: got {got!r}, wanted {known[name]!r}, as {base} has; leave it out"
    with pytest.raises(UsageError, match=text):
        train(replace(training, **asked))


def test_values_that_are_scaled_anew_may_be_of_another_unit(training):
    asked = replace(training, base="base", own_scaling=True)
    known = {"unit": "dn"}

    assert asked.settled(known).unit == "dn"
    assert replace(asked, unit="reflectance").settled(known).unit == "reflectance"
    assert training.settled().unit == "reflectance"


def test_going_on_with_other_classes_makes_a_new_head_only(training):
    write_card(training.folder, replace(train(training), fields=(1,)))
    more = elsewhere(
        training, "more", base=training.to, classes=("bright", "dark"), epochs=1,
        steps=1, learning_rate=1e-9, own_scaling=True, validation=0.0,
    )  # fmt: skip
    card = train(more)

    old, new = (
        load_module(item.folder, read_card(item.folder)).state_dict()
        for item in (training, more)
    )
    assert [item.name for item in card.classes] == ["bright", "dark"]
    assert card.fields == ()  # nobody says which of these are
    assert card.mean == tuple(band.mean for band in card.statistics)
    assert card.temperature is None
    for key, weights in old.items():
        is_same = torch.allclose(weights, new[key], atol=1e-6)
        assert is_same != key.startswith("final_conv"), key


def test_going_on_from_one_logit_keeps_what_it_says(training, tmp_path):
    """A class and its background, as the tutorial's network, are two logits then."""
    base = make_model(tmp_path / "base", outputs=1)
    names = tuple(item.name for item in read_card(base).classes)
    same = {"width": None, "depth": None, "tile": None, "halo": None, "block": 64}
    renamed = tuple(f"{n}={name}" for n, name in enumerate(names))
    more = replace(
        training, base=str(base), classes=names, renamed=renamed, epochs=1, steps=1,
        learning_rate=1e-12, validation=0.0, test=0.0, **same,
    )  # fmt: skip

    card = train(more)

    one, two = (
        load_module(folder, read_card(folder)) for folder in (base, more.folder)
    )
    round_weights(one)
    tiles = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        logits, both = one(tiles), two(tiles)
    assert card.outputs == 2
    assert logits.std() > 0.01
    torch.testing.assert_close(both[:, 1:] - both[:, :1], logits, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_gone_on_from_is_refused(training, tmp_path):
    two = make_model(tmp_path / "two", bands=("blue", "green"))
    many = replace(training, base=str(two), bands=("blue", "green", "red"))
    with pytest.raises(UsageError, match="got 3, wanted 2"):
        train(many)
    with pytest.raises(ModelError, match="no model here"):
        train(replace(training, base=str(tmp_path)))


def test_the_time_left_counts_all_that_takes_time(training, caplog):
    """Not the steps alone: on a GPU reading may take longer."""
    caplog.set_level("INFO")

    train(replace(training, epochs=1), told=lambda *_: time.sleep(0.2))

    (said,) = re.findall(r"epoch 1 of 1: .*; (\d+) ms a step", caplog.text)
    metrics = json.loads((training.folder / "metrics.json").read_text())
    assert int(said) > 200 + metrics["ms_per_step"]


def test_a_class_that_no_score_speaks_of_is_named(training, caplog):
    """All of it lies in one block, which is for training, as every class must be."""
    classes = rasterio.open(training.labels[0]).read(1)
    classes[40:44, 40:44] = 2
    path = training.folder.with_name("three.tif")
    rare = write(path, classes, tags=("dark", "bright", "rare"))

    train(replace(training, labels=(rare,), epochs=1, steps=1, test=0.0))

    assert "no label of rare lies in blocks for validation" in caplog.text
    assert "for test" not in caplog.text


def test_training_ends_when_nothing_gets_better(training):
    still = replace(training, learning_rate=1e-12, epochs=9, patience=2)

    train(still)

    metrics = json.loads((training.folder / "metrics.json").read_text())
    assert (len(metrics["epochs"]), metrics["best_epoch"]) == (3, 1)


def test_without_validation_the_last_epoch_is_kept(training):
    card = train(replace(training, validation=0.0, patience=1))

    metrics = json.loads((training.folder / "metrics.json").read_text())
    assert card.temperature is None
    assert metrics["best_epoch"] == len(metrics["epochs"]) == 3


def test_a_loss_that_is_no_number_ends_it(training):
    with pytest.raises(ModelError, match="--learning-rate"):
        train(replace(training, learning_rate=0.99, steps=400, weight_decay=1e9))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 5}, "no usable model.*multiples of 32"),
        ({"halo": 5}, "halo: got 5"),
        ({"block": 19}, "block: got 19"),
        ({"validation": 0.5}, "validation: got 0.5"),
        ({"classes": ("one",)}, "2 to 255 names"),
        ({"classes": ("one", "one=ffffff")}, "2 to 255 names"),
        ({"classes": ("one=red", "two")}, "2 to 255 names"),
        ({"labels": ()}, "one for each of 1 scenes"),
        ({"epochs": 1.5}, "epochs: got 1.5, wanted a whole number"),
        ({"scale": 0.0}, "scale: got 0.0, wanted a finite number, not 0"),
        ({"offset": 0.1}, "offset: means nothing without scale"),
        ({"scale": 0.1, "unit": "dn"}, "scale: means nothing with unit dn"),
        ({"renamed": ("3",)}, "VALUE=CLASS"),
        ({"workers": 2}, "workers: got 2, wanted 1, or with --engine ray"),
        ({"workers": 4, "engine": "ray"}, r"up to a tile each \(3\)"),
    ],
)
def test_a_wrong_wish_is_refused_before_any_work(training, changes, words):
    with pytest.raises(UsageError, match=words):
        train(replace(training, **changes))
    assert not training.work.exists()


def test_the_learning_rate_rises_then_falls():
    rates = [rate_at(step, 40, 0.25) for step in range(40)]

    np.testing.assert_allclose(rates[:10], np.linspace(0.1, 1, 10))
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[10] == 1
    assert rates[-1] < 0.01


def test_the_command_line_says_classes_and_scores(training, tmp_path):
    """Options win over the file."""
    config = tmp_path / "train.toml"
    lines = [f"{key} = {value}" for key, value in SMALL.items()]
    lines += ['classes = ["no", "yes"]', "test = 0.0"]
    config.write_text("\n".join(lines))
    words = [
        "train", "--scene", training.scenes[0], "--labels", training.labels[0], "--to",
        training.to, "--config", str(config), "--epochs", "1",
        "--classes", "dark=101010,bright", "--bands", "red,blue", "--scale", "2e-4",
    ]  # fmt: skip

    result = CliRunner().invoke(main, words)

    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["epochs"] == 1
    assert 0 <= said["validation"]["macro_f1"] <= 1
    card = read_card(training.folder)
    assert card.bands == ("red", "blue")
    assert card.statistics[0].maximum == pytest.approx(6499 * 2e-4, rel=0.01)
    assert [item.color for item in card.classes] == ["101010", "1b7837"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "scenes: got []"),
        (["--config", "no.toml"], "no.toml: cannot be read as TOML"),
    ],
)
def test_the_command_line_ends_with_2_in_one_line(words, text):
    result = CliRunner().invoke(main, ["train", *words])

    assert result.exit_code == 2
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_field_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text("epoch = 3")

    result = CliRunner().invoke(main, ["train", "--config", str(tmp_path / "a.toml")])

    assert result.exit_code == 2
    assert "unknown key 'epoch'; a training has" in result.stderr
