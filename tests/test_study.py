"""The land-cover models' sources, and the tables of what is found of them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tileseg.cards.item import read_card
from tileseg.evaluation.scores import Calibration, Confusion

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import study
import train as train_job
from landcover import page, sources

NAMES = "water", "land"


def confusion(*rows):
    """Return one of two classes; the last column is nodata in the mask."""
    return Confusion(NAMES, np.array(rows, np.int64))


def test_scenes_and_labels_go_together(tmp_path):
    """Of the example alone, and of all that a folder has."""
    alone, together = (
        sources.training(data, "model").settled() for data in (None, tmp_path)
    )

    assert alone.classes == together.classes
    assert together.scenes[0] == alone.scenes[0] == "examples/itaipu.tif"
    assert len(together.scenes) == len(set(together.labels)) == 7
    assert together.block >= together.tile + 2 * together.keep


def test_the_last_training_goes_on_from_the_first_one_on_the_same_blocks(tmp_path):
    first, last = sources.trainings(tmp_path, "model")

    assert (last.base, last.to) == (first.to, "model")
    assert (first.scenes, first.labels, first.seed) == (
        last.scenes,
        last.labels,
        last.seed,
    )
    assert (first.block, first.test, first.validation) == (
        last.block,
        last.test,
        last.validation,
    )
    assert [part.to for part in sources.trainings(None, "model")] == ["model"]


def test_with_infrared_only_the_sources_that_have_it_are_learnt(tmp_path):
    """As often as before, whatever else there is."""
    bands = sources.BANDS, sources.INFRARED
    (_, all_), (_, some) = (sources.trainings(tmp_path, "m", item) for item in bands)
    weights = [dict(zip(it.scenes, it.weights, strict=True)) for it in (all_, some)]

    assert some.bands == (*all_.bands, "nir")
    assert set(all_.scenes) - set(some.scenes) == {"examples/itaipu.tif"}
    assert weights[1].items() < weights[0].items()


def test_the_dates_of_a_source_count_as_one():
    first = confusion((5, 1, 0), (0, 4, 0))
    second = confusion((1, 1, 1), (2, 2, 0))
    right, total = np.zeros(255, np.int64), np.zeros(255, np.int64)
    right[254], total[254] = 3, 4
    sure = Calibration(right, total)
    scores = [
        page.Score("a", page.NETWORK, first, sure),
        page.Score("a", page.NETWORK, second, sure),
        page.Score("b", page.NETWORK, first, sure),
        page.Score("a", "forest", first),
    ]

    found = study.by_source(scores)

    assert list(found) == [("a", page.NETWORK), ("b", page.NETWORK), ("a", "forest")]
    both = found["a", page.NETWORK]
    assert (both.confusion.counts == first.counts + second.counts).all()
    assert both.calibration.total[254] == 8
    assert found["b", page.NETWORK].confusion == first


def test_the_best_of_a_source_is_bold_and_ties_both():
    good, bad = confusion((5, 0, 0), (0, 4, 0)), confusion((2, 3, 0), (0, 4, 0))
    ways = {"one": good, "two": bad, "three": replace(good)}
    table = page.as_scores(
        {("place", way): page.Score("place", way, it) for way, it in ways.items()}
    )

    *_, line = table.splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]

    assert cells[:2] == ["place", "9"]
    assert cells[2] == cells[4] == "**1.000**"
    assert cells[3].startswith("0.6")


def test_a_table_is_put_between_its_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->")

    page.write_between(path, "one", r"| \1 |")

    wanted = "a\n<!-- one -->\n| \\1 |\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->"
    assert path.read_text() == wanted


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_examples_training_comes_out_as_well_again(tmp_path, monkeypatch):
    """Some minutes on two cores."""
    monkeypatch.chdir(Path(__file__).parents[1])
    line = ["--to", str(tmp_path / "model")]

    told = CliRunner().invoke(train_job.main, line, catch_exceptions=False)

    assert told.exit_code == 0
    score = float(told.stdout.rsplit("macro-F1 ", 1)[1].split()[0])
    assert score > 0.95
    assert f"macro-F1 {score:.3f}" in read_card(tmp_path / "model").about["score"]
