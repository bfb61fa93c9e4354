"""Several models and a tile's symmetries: the mean of probabilities, by an oracle too.

Logits of the oracle's networks are exact; means of probabilities are not, so labels are
compared where two classes are not as good as equal.
"""

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from making import lively, make_card, make_model, make_plain
from test_oracle import BLOCKS, invalid_pixels, scaled, tame_network, whole
from torch.profiler import ProfilerActivity, profile

from tileseg.cards.ensemble import Ensemble
from tileseg.cards.item import read_card
from tileseg.engines.staff import Staff
from tileseg.errors import ExitCode, ModelError
from tileseg.grid import Grid, Run
from tileseg.job import run as carry_out
from tileseg.network import averaging, model
from tileseg.network.averaging import D4, Averaged
from tileseg.network.blend import Blend
from tileseg.network.device import Device, resolve_device, tile_bytes
from tileseg.network.model import Network
from tileseg.network.predict import Predictor, Scaling
from tileseg.network.unet import UNet
from tileseg.scenes.reader import Reader
from tileseg.scenes.scene import open_scene
from tileseg.settings import LAYERS, Job

CPU = Device("cpu", "any", "fp32")
BANDS = ("one", "two", "three")
# Bands, mean, std: the second model has a band more and knows another mean of one of
# the first's; the third has the first one's bands in another order.
EATEN = (
    (("one", "two"), (1.0, -2.0), (1.0, 0.5)),
    (("three", "one"), (0.0, 2.0), (0.5, 1.0)),
    (("two", "one"), (-2.0, 1.0), (0.5, 1.0)),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Keep torch from waking threads for tiles of a few pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_ensemble(grid, models, tta, *, outputs=3, width=2, depth=1):
    """Return an ensemble that lies in no folder."""
    cards = tuple(
        make_card(
            outputs=outputs,
            bands=bands,
            mean=mean,
            std=std,
            tile=grid.tile,
            halo=grid.halo,
            width=width,
            depth=depth,
            sha256=f"{number}" * 64,
        )
        for number, (bands, mean, std) in enumerate(EATEN[:models])
    )
    return Ensemble(("",) * models, cards, tta)


def scaling_of(ensemble):
    """Return how stored values, which are in the cards' unit, become channels."""
    channels = ensemble.channels
    return Scaling(
        tuple(1 / it.std for it in channels),
        tuple(-it.mean / it.std for it in channels),
        tuple(it.band for it in channels),
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scene, an ensemble and everything the oracle says about them."""

    network: Averaged
    pixels: np.ndarray
    valid: np.ndarray
    sums: np.ndarray
    totals: np.ndarray

    def layer(self, name):
        return getattr(oracle, name)(self.sums, self.totals, self.valid)

    @property
    def is_clear(self):
        """Where one class is ahead of the others by more than fp32 may err."""
        logits = self.sums / self.totals
        if len(logits) == 1:
            logits = np.concatenate((logits, np.zeros_like(logits)))
        *_, second, first = np.sort(logits, axis=0)
        return self.valid & (first - second > 1e-3)


def make_case(grid, seed, *, models, tta, blend, outputs=3):
    """Draw pixels and weights; ask the oracle."""
    random = np.random.default_rng(seed)
    ensemble = make_ensemble(grid, models, tta, outputs=outputs)
    pixels = random.integers(1, 7, (len(ensemble.bands), grid.height, grid.width))
    invalid = invalid_pixels("rectangles", random, grid.height, grid.width)
    pixels[:, invalid] = 0
    answers, networks = [], []
    for card in ensemble.cards:
        at = [ensemble.bands.index(band) for band in card.bands]
        own = Scaling(
            tuple(1 / std for std in card.std),
            tuple(-mean / std for mean, std in zip(card.mean, card.std, strict=True)),
        )
        seen = scaled(pixels[at], ~invalid, own)
        tiles = oracle.cut_tiles(seen, grid.tile, grid.halo)
        weights, divisor = lively_weights(random, tiles, outputs)
        flat = tiles.reshape(-1, *tiles.shape[2:])
        ways = list(oracle.ways(flat)) if tta == "d4" else [(flat, np.asarray)]
        answers += [undo(oracle.unet(weights, lain) / divisor) for lain, undo in ways]
        networks.append(make_network(card, weights, divisor))
    mean = oracle.averaged(answers)
    profile = oracle.profile(blend, grid.tile, grid.halo)
    sums, totals = oracle.blended(
        mean.reshape(*tiles.shape[:2], *mean.shape[1:]),
        pixels.shape[1:],
        profile,
        grid.halo,
    )
    return Case(
        network=Averaged(ensemble, networks, networks[0].device),
        pixels=pixels.astype("int16"),
        valid=~invalid,
        sums=sums,
        totals=totals,
    )


def lively_weights(random, tiles, outputs):
    """Draw integer weights, and a power of two that logits are to be divided by.

    So they stay exact, every class is likely somewhere, few are as likely as another,
    and no probability is as good as 0.
    """
    weights, logits = tame_network(random, tiles, outputs, 2)
    middle = np.floor(np.median(logits, axis=(0, 1, 3, 4)))
    middle += 0.5 ** np.arange(1, outputs + 1)
    weights["final_conv.bias"] = weights["final_conv.bias"] - middle
    spread = (logits - middle[:, None, None]).std()
    return weights, 2.0 ** max(0, round(np.log2(max(spread, 1))))


def make_network(card, weights, divisor):
    """Return the network that carries integer weights, its logits divided."""
    module = UNet(len(card.bands), card.outputs, **card.architecture.parameters)
    module.load_state_dict(
        {name: torch.tensor(value).float() for name, value in weights.items()}
    )
    with torch.no_grad():
        module.final_conv.weight /= divisor
        module.final_conv.bias /= divisor
    return Network(card, module, resolve_device("cpu", "fp32"))


def segment(network, path, grid, blend, *, runs=None, batch=3):
    """Return every layer of the whole scene, put together from runs."""
    scene = open_scene(str(path))
    blend = Blend(grid.stride, grid.halo, blend)
    reader = Reader(scene, scene.bands, grid)
    scaling = scaling_of(network.ensemble)
    predictor = Predictor(network, grid, blend, scaling, batch=batch)
    shape = grid.height, grid.width
    found = {name: np.full(shape, 254) for name in ("", *LAYERS)}
    found["probabilities"] = np.full((max(2, network.card.outputs), *shape), 254)
    for run in runs or whole(grid):
        window = grid.pixels(run)
        row = window.row
        strips = reader.strips(run, ring=blend.ring)
        for part in predictor.rows(run, strips, layers=LAYERS):
            assert list(part.layers) == list(LAYERS)
            box = replace(window, row=row, height=len(part.labels))
            for name, values in {"": part.labels, **part.layers}.items():
                found[name][..., *box.slices] = values
            row = box.row_stop
    return found


@pytest.mark.parametrize("blend", ["crop", "cosine"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("models", "tta"), [(1, "d4"), (2, "none"), (3, "d4")])
def test_labels_and_layers_are_the_oracles(models, tta, outputs, blend, tmp_path):
    """Each model is shown its own bands, scaled its own way; layers within a step."""
    grid = Grid(height=37, width=53, tile=16, halo=4, shard=16)
    case = make_case(grid, 6, models=models, tta=tta, blend=blend, outputs=outputs)
    path = make_plain(tmp_path / "scene.tif", case.pixels, nodata=0, **BLOCKS[1])

    found = segment(case.network, path, grid, blend)

    labels = oracle.labels(case.sums, case.valid)
    assert len(np.unique(labels)) > 2
    assert case.is_clear.sum() > 0.9 * case.valid.sum()
    np.testing.assert_array_equal(labels[case.is_clear], found[""][case.is_clear])
    for name in LAYERS:
        expected = case.layer(name)
        assert len(np.unique(expected)) > 4
        np.testing.assert_array_equal(expected == 255, found[name] == 255)
        assert np.abs(expected.astype(int) - found[name]).max() <= 1


@pytest.mark.parametrize("blend", ["crop", "cosine"])
def test_cutting_changes_no_bit(blend, tmp_path):
    """Of real networks: means and sums have an order that no run decides."""
    grid = Grid(height=77, width=61, tile=32, halo=8, shard=32)
    random = np.random.default_rng(7)
    pixels = random.integers(1, 7, (3, grid.height, grid.width)).astype("int16")
    pixels[:, 40:60, 20:50] = 0
    path = make_plain(tmp_path / "scene.tif", pixels, nodata=0)
    ensemble = make_ensemble(grid, 3, "d4", width=4, depth=2)
    networks = []
    for seed, card in enumerate(ensemble.cards):
        torch.manual_seed(seed)
        module = UNet(len(card.bands), 3, **card.architecture.parameters)
        lively(module)
        with torch.no_grad():
            module.final_conv.weight /= 10  # else all is certain
        networks.append(Network(card, module, replace(CPU, network="fused")))
    network = Averaged(ensemble, networks, networks[0].device)
    shards = list(Run(grid.shape))
    np.random.default_rng(0).shuffle(shards)
    parts = [run for shard in shards for run in grid.runs([shard], band=1, rows=1)]

    once = segment(network, path, grid, blend, batch=4)
    again = segment(network, path, grid, blend, runs=parts, batch=4)

    for name, values in once.items():
        assert len(np.unique(values)) > 2
        np.testing.assert_array_equal(values, again[name])


def random_network(outputs=3, *, network="plain", seed=0):
    torch.manual_seed(seed)
    card = make_card(outputs=outputs, sha256=f"{seed}" * 64)
    module = UNet(3, outputs, **card.architecture.parameters)
    lively(module)
    return Network(card, module, replace(CPU, network=network))


def averaged(network, tta="d4"):
    ensemble = Ensemble(("",), (network.card,), tta)
    return Averaged(ensemble, [network], network.device)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("network", ["plain", "fused"])
def test_the_answer_turns_with_the_tile(outputs, network):
    """Exactly what the eight are for; a network alone does not do it."""
    alone = random_network(outputs, network=network)
    tiles = torch.randn(2, 3, 32, 32)

    for symmetry in D4[1:]:
        turned = symmetry.apply(tiles)
        off = [
            (net(turned) - symmetry.apply(net(tiles))).abs().max()
            for net in (averaged(alone), alone)
        ]
        assert off[0] < 1e-4
        assert off[1] > 0.05


def test_the_eight_symmetries_are_all_and_undone():
    square = torch.arange(9.0).view(1, 1, 3, 3)

    ways = [symmetry.apply(square) for symmetry in D4]

    assert len({tuple(way.flatten().tolist()) for way in ways}) == 8
    for symmetry, way in zip(D4, ways, strict=True):
        assert torch.equal(square, symmetry.undo(way))


def test_models_that_agree_are_as_sure_as_one():
    """The mean of equal probabilities is that probability."""
    alone = random_network()
    cards = (alone.card, replace(alone.card, sha256="f" * 64))
    twice = Averaged(Ensemble(("", ""), cards), [alone, alone], CPU)
    tiles = torch.randn(2, 3, 32, 32)

    torch.testing.assert_close(twice(tiles), alone(tiles).log_softmax(dim=1))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_answer_that_is_not_finite_is_not_averaged_away(value, outputs):
    sound, sick = (random_network(outputs, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        sick._forward.final_conv.bias[0] = value
    cards = (sound.card, sick.card)
    network = Averaged(Ensemble(("", ""), cards), [sound, sick], CPU)

    assert not torch.isfinite(network(torch.randn(1, 3, 32, 32))).all(dim=1).any()


def test_a_network_that_gives_infinity_is_refused(tmp_path):
    grid = Grid(height=20, width=40, tile=16, halo=4, shard=24)
    case = make_case(grid, 2, models=2, tta="d4", blend="crop")
    path = make_plain(tmp_path / "scene.tif", case.pixels, nodata=0)
    with torch.no_grad():
        case.network._members[1][0]._forward.final_conv.bias[1] = -np.inf

    with pytest.raises(ModelError, match=r"NaN or Inf for tile \(row 0"):
        segment(case.network, path, grid, "crop")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of three classes, of different sizes."""
    folder = tmp_path_factory.mktemp("models")
    return [
        str(make_model(folder / str(width), seed=width, width=width, depth=2))
        for width in (4, 6)
    ]


def ensemble_of(folders, tta="none"):
    cards = tuple(read_card(Path(folder)) for folder in folders)
    return Ensemble(tuple(folders), cards, tta)


def loaded(folders, tta="none", network="plain"):
    return averaging.load(ensemble_of(folders, tta), replace(CPU, network=network))


def test_networks_stay_at_hand_until_others_are_wanted(folders):
    """Whatever memory a network may take; there is never more than one of a device."""
    one, other = ensemble_of(folders[:1]), ensemble_of(folders[1:])
    first = averaging.at_hand(one, CPU, trim=2)
    gone = weakref.ref(first)

    with ThreadPoolExecutor(4) as pool:
        device = replace(CPU, memory=1 << 30)
        wish = partial(averaging.at_hand, ensemble_of(folders[:1]), device, trim=2)
        found = [it.result() for it in [pool.submit(wish) for _ in range(8)]]

    assert all(it is first for it in found)
    del found, first
    for wish in (
        (one, CPU, 1),
        (one, replace(CPU, network="fused"), 1),
        (other, CPU, 1),
        (replace(other, tta="d4"), CPU, 1),
    ):
        got = averaging.at_hand(*wish)
        assert gone() is None
        assert type(got) is type(averaging.load(*wish))
        assert got.device.network == wish[1].network
        gone = weakref.ref(got)
        del got
    averaging.let_go()
    assert gone() is None


@pytest.mark.parametrize("blend", ["crop", "cosine"])
def test_a_model_is_loaded_once_for_jobs_that_follow_each_other(
    blend, folders, scene_path, tmp_path, monkeypatch
):
    """By whoever chooses the way that it is run; the workers find it at hand."""
    loaded, load = [], model.load_module
    monkeypatch.setattr(
        model, "load_module", lambda *args: loaded.append(args) or load(*args)
    )
    averaging.let_go()
    facts = {"input": str(scene_path), "model": folders[0], "precision": "fp32"}
    with Staff() as staff:
        for name in ("first", "second"):
            output = str(tmp_path / name)
            job = Job(**facts, output=output, blend=blend, engine="local", shard=96)
            assert carry_out(job, staff=staff).values["exit_code"] == ExitCode.OK
            assert len(loaded) == 1


def test_one_model_without_symmetries_is_the_network_itself(folders):
    assert type(loaded(folders[:1])) is Network
    assert type(loaded(folders)) is type(loaded(folders[:1], "d4")) is Averaged


@pytest.mark.parametrize(
    ("network", "ways"),
    [("fused", ["fused", "fused"]), ("fused+plain", ["fused", "plain"])],
)
def test_each_network_is_run_in_its_way(folders, network, ways):
    members = [member for member, _ in loaded(folders, network=network)._members]

    assert ways == [member.device.network for member in members]


@pytest.mark.parametrize("network", ["plain", "fused"])
@pytest.mark.parametrize("outputs", [1, 12])
def test_a_batch_takes_no_more_than_it_is_said_to(network, outputs):
    """As torch itself counts what is held: one forward at a time, and the averages."""
    card = make_card(outputs=outputs, tile=64, halo=8, width=4, depth=2)
    cards = (card, replace(card, sha256="1" * 64))
    ensemble = Ensemble(("", ""), cards, "d4")
    one = Network(
        card, UNet(3, outputs, width=4, depth=2), replace(CPU, network=network)
    )
    run_it = Averaged(ensemble, [one, one], CPU)
    tiles = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    run_it(tiles)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run_it(tiles)
    events = sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    held = most = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)

    assert 0.25 < most / (4 * tile_bytes(ensemble, CPU)) < 1
