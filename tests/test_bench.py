"""What speed is measured with: scenes, the same work for all, an honest table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner

from tileseg.cards.item import read_card
from tileseg.errors import ExitCode
from tileseg.network.device import resolve_device
from tileseg.network.model import load_module

sys.path.insert(0, str(Path(__file__).parents[1] / "jobs"))
import bench
from benchmark import memory, peers, polygons, scenes, stages, table, whole
from benchmark.peer.contract import Wish, place
from benchmark.scenes import Kind
from benchmark.setting import Setting
from benchmark.table import Row

HEIGHT, WIDTH = 517, 700
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "a CPU",
    "cores": 2,
    "ram_gb": 4,
    "vectors": "AVX2",
    "gpu": None,
    "precision": "fp32",
    "load": 0.0,
    "torch": "2",
    "gdal": "3",
    "python": "3",
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    device = resolve_device("cpu", "fp32")
    folder = tmp_path_factory.mktemp("bench")
    return Setting(device=device, quick=True, rounds=1, folder=folder)


def pixels(folder, **changes):
    path = scenes.make_scene(Kind(height=HEIGHT, width=WIDTH, **changes), folder)
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.mark.parametrize("codec", ["zstd", "lzw", "none"])
@pytest.mark.parametrize("block", [256, 512, 0])
def test_a_scene_is_the_same_however_it_is_stored(tmp_path, codec, block):
    expected = pixels(tmp_path)

    actual = pixels(tmp_path, codec=codec, block=block)

    np.testing.assert_array_equal(actual, expected)
    assert actual.all(), "no pixel is nodata"


def test_a_scene_is_smooth_from_block_to_block(tmp_path):
    bands = pixels(tmp_path).astype(int)

    steps = abs(np.diff(bands, axis=2)).max(axis=(0, 1))

    assert steps[511] <= np.delete(steps, 511).max()


def test_blocks_without_data_are_not_in_the_file(tmp_path):
    path = scenes.make_scene(Kind(height=4_096, width=4_096, every=1 << 20), tmp_path)

    assert path.stat().st_size < 10_000


def test_a_scene_is_made_once(tmp_path):
    kind = Kind(height=HEIGHT, width=WIDTH)
    first = scenes.make_scene(kind, tmp_path).stat().st_mtime_ns

    assert scenes.make_scene(kind, tmp_path).stat().st_mtime_ns == first


def test_what_is_compared_takes_turns():
    order = []

    def call(name):
        order.append(name)
        return len(order)

    timed = {name: lambda name=name: call(name) for name in "ab"}
    found = table.interleave(timed, 2)

    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1, 3], "b": [2, 4]}
    assert table.spread([1, 2, 4]) == 1.5


ROWS = [
    Row("alone", "fast", {"tiles_s": 12_345.6, "spread": 0.25}),
    Row("alone", "compiled", {"tiles_s": None}, "failed: no compiler"),
    Row("whole", "job", {"ratio": 0.951, "precision": "bf16"}),
]


def test_the_table_leaves_nothing_out():
    text, markdown = table.as_text(ROWS), table.as_markdown(ROWS)

    assert "failed: no compiler" in text
    assert "| compiled | – |  | failed: no compiler |" in markdown
    assert "12,346" in text
    assert "0.951" in text


def test_results_are_read_again_for_a_page(tmp_path):
    """Two results, one of a GPU: a section each, and nothing else is measured."""
    rows = [row.as_dict() for row in ROWS]
    for name, gpu in (("cpu", None), ("gpu", "an H100")):
        result = {"machine": {**MACHINE, "gpu": gpu}, "rows": rows}
        (tmp_path / name).write_text(json.dumps(result))
    page = tmp_path / "page.md"

    def write(*names):
        words = [word for name in names for word in ("--read", str(tmp_path / name))]
        args = [*words, "--markdown", str(page)]
        assert CliRunner().invoke(bench.main, args, catch_exceptions=False).stdout
        return page.read_text()

    assert "\n## GPU\n\nNot measured." in write("cpu")
    assert "Not measured" not in (text := write("cpu", "gpu"))
    assert "## 2 CPU cores, 2026-01-02" in text
    assert "## an H100, 2026-01-02" in text


def test_a_slow_disk_without_a_simulated_device_is_refused():
    result = CliRunner().invoke(bench.main, ["--storage", "0.5"])

    assert result.exit_code == ExitCode.USAGE
    assert "wanted with --simulate" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--device", "tpu"],
        ["--simulate", "9", "--storage", "-1"],
        ["--latency", "-1"],
        ["--only", "memory", "--simulate", "9"],
        ["--only", "memory", "--engine", "ray"],
        ["--read", "other.json"],
        ["--read", "half.json"],
    ],
    ids=" ".join,
)
def test_what_nobody_could_mean_is_refused_before_anything_is_measured(
    words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("{}")
    Path("half.json").write_text(json.dumps({"machine": MACHINE, "rows": [{}]}))

    result = CliRunner().invoke(bench.main, words)

    assert result.exit_code == ExitCode.USAGE, result.output
    assert not Path("out").exists()


def test_the_picture_is_a_picture(tmp_path):
    rows = [row.as_dict() for row in ROWS]

    bench.draw({"machine": MACHINE, "rows": rows}, tmp_path / "bench.png")

    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(300, 410), (128, 131)])
@pytest.mark.parametrize("first", [0, -16, -44])
def test_tiles_put_together_are_the_picture_they_were_cut_from(shape, first):
    """Also where they begin outside, as torchgeo's do."""
    facts = dict.fromkeys(Wish.__dataclass_fields__, 0)
    wish = Wish(**{**facts, "tile": 128, "stride": 96})
    picture = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    padded = np.pad(picture, 128)
    mask = np.full(shape, 255, np.uint8)
    for row in range(first, shape[0], 96):
        for col in range(first, shape[1], 96):
            tile = padded[row + 128 :, col + 128 :][:128, :128]
            full = np.zeros((128, 128), np.uint8)
            full[: tile.shape[0], : tile.shape[1]] = tile
            place(mask, full, (row, col), wish)

    np.testing.assert_array_equal(mask, picture)


def test_a_widened_model_answers_as_the_one_it_is_of(setting):
    """So that bf16 is to a wide network what it is to the trained one."""
    own, wide = (scenes.own_model(setting.folder, width) for width in (16, 32))
    cards = [read_card(model) for model in (own, wide)]
    tiles = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = [
            load_module(*pair)(tiles) for pair in zip((own, wide), cards, strict=True)
        ]

    assert [card.architecture.parameters["width"] for card in cards] == [16, 32]
    assert answers[0].std() > 1
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def contest(setting):
    scene = scenes.make_scene(Kind(height=300, width=410), setting.folder)
    model = scenes.make_model(setting.folder, width=2)
    return peers.contest_of(scene, model, setting)


def test_the_reference_is_what_fp32_gives(contest):
    """It shares no code with the job, and is all but equal to it."""
    figures = peers.own_figures(contest)

    assert figures["agree"] > 0.9999
    assert len(np.unique(contest.reference)) > 1


def test_a_library_that_is_not_there_is_named_with_the_reason(contest, monkeypatch):
    monkeypatch.setenv("TILESEG_PEERS", "/nowhere/python")

    figures, note = peers.peer_figures(contest, "torchgeo_grid")

    assert figures == {}
    assert note == "not installed: make peers"


@pytest.mark.slow
def test_a_library_gets_the_same_network_and_scene(contest, monkeypatch):
    """Windows of rasterio need nothing that is not here; who fails is named too."""
    monkeypatch.setenv("TILESEG_PEERS", sys.executable)
    programs = {"windows": "windows", "nobody": "nothing"}
    monkeypatch.setattr(peers, "PROGRAMS", programs)

    own, windows, nobody = peers.rows_of(contest, "here")

    assert own.figures["tileseg_is"] == 1
    assert windows.note == ""
    assert windows.figures["agree"] > 0.8  # tiles lie elsewhere
    assert windows.figures.keys() == own.figures.keys()
    reason = "ModuleNotFoundError: No module named 'benchmark.peer.nothing'"
    assert nobody == Row("peers", "nobody, here", {}, f"failed: {reason}")


def test_a_whole_job_is_timed_from_its_call_to_its_end(contest):
    figures = whole.one_job(contest.scene, contest.model, contest.setting)

    assert 0 < figures["first_tile_s"] < figures["seconds"]
    assert 0 < figures["after_last_s"] < figures["seconds"]
    assert figures["tiles_s"] * figures["seconds"] == pytest.approx(20)


def test_the_network_whose_answer_is_there_gives_no_hold_to_the_device(contest):
    """All else of the forwarding half runs as it does in a job."""
    task, setting = contest.task, contest.setting
    network = stages.load(contest.model, task.card, setting.device)
    reader = stages.Reader(task.scene, task.bands, task.grid)
    ready = stages.Ready(network, setting.batch(task.card))
    predictor = stages.predictor_of(task, ready, setting)
    run = stages.Run(task.grid.shape)

    rows = list(predictor.rows(run, reader.strips(run), layers=("confidence",)))

    assert sum(len(item.labels) for item in rows) == 300
    assert predictor.tiles == 20


@pytest.mark.slow
def test_the_memory_of_a_job_is_that_above_its_network(setting):
    case = memory.Case(
        kind=Kind(height=1_024, width=1_100), classes=20, confidence=True
    )

    row = memory.row_of(case, setting)

    assert 0 < row.figures["above_mb"] < row.figures["predicted_mb"]
    assert "simulated" in row.note


@pytest.mark.slow
def test_a_mask_becomes_the_same_polygons_by_all_means(tmp_path):
    """Our workers, whichever format, and GDAL's tracer."""
    rows = list(polygons.rows_of(600, 1, tmp_path))

    assert len(rows) == 4
    assert len({row.figures["polygons"] for row in rows}) == 1
    assert all(row.figures["peak_mb"] > 50 for row in rows), "Python alone has as much"
