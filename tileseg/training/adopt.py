"""Somebody else's network -> a model folder, once; after that only the folder is used.

What a checkpoint does not say of itself (which bands, how they are scaled, which
classes) is told by whoever imports it; the network is then seen to work.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tileseg.base.classes import LandClass, color_of, values_of
from tileseg.cards.architecture import KINDS
from tileseg.cards.card import Card
from tileseg.cards.item import write_card
from tileseg.errors import ModelError, UsageError, last_line
from tileseg.grid import shard_size
from tileseg.publishing.publish import staging
from tileseg.stores.storage import write_whole
from tileseg.training.footprint import footprint
from tileseg.training.recognise import Found, Hints, recognise

__all__ = ["Adopted", "Told", "adopt", "lay"]

_TRIED = 2  # tiles
_TILE = 256  # pixels, where nobody says
_LEAST_TILE, _MOST_TILE = 16, 4096  # a file may say any; it is tried with two
_FP32_BYTES = 4
_SUM_OFF = 1e-3  # that probabilities of a pixel may be from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is told of a network; None and () stand for what the file itself says."""

    bands: tuple[str, ...] = ()
    """Band names in the order of its inputs."""
    classes: tuple[str, ...] = ()
    """Class names in the order of its outputs."""
    colors: tuple[str, ...] = ()
    """RRGGBB of each class."""
    fields: tuple[str, ...] = ()
    """Names of the classes that are agricultural fields."""
    unit: str | None = None
    """`reflectance` or `dn`: what mean and std are in."""
    mean: tuple[float, ...] = ()
    """Per band, or one for all; the network sees (value - mean) / std."""
    std: tuple[float, ...] = ()
    """Per band, or one for all."""
    tile: int | None = None
    """Side of a tile in pixels."""
    halo: int | None = None
    """Margin of a tile that is thrown away, in pixels."""
    gsd: float | None = None
    """Metres of a pixel that it was trained on."""
    name: str = ""
    """What to call the model; else the folder's name."""
    version: str = "1"
    """Of the model."""
    answers: str | None = None
    """`logits` or `probabilities`."""
    smp: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `smp.create_model`, for a bare state_dict of that library."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Free words for the card."""
    trust_code: bool = False
    """Whether a program may be run."""
    sha256: str = ""
    """The file's, as its maker says; a program is not run without it."""

    @property
    def hints(self) -> Hints:
        """Return what helps to recognise its network."""
        count = len(self.classes)
        return Hints(
            bands=len(self.bands) or None,
            outputs=count or None,
            smp=self.smp,
            trust_code=self.trust_code,
            sha256=self.sha256,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Adopted:
    """A network with its card, not written yet."""

    card: Card
    """All that is known of it."""
    weights: bytes
    """The file beside the card."""


def adopt(source: Path, told: Told, *, folder_name: str) -> Adopted:
    """Read somebody's network, describe it, and see that it works.

    Args:
        source: a file (.pt, .pth, .ckpt, .safetensors, .onnx, .pt2) or a folder that
            segmentation_models_pytorch's `save_pretrained` wrote.
        told: what it does not say itself.
        folder_name: of the model folder that it is for.

    Raises:
        RefusedError: it holds objects that could run code, or keeps data elsewhere.
        ModelError: it is broken, fails, or is no network that is known here; or a
            library is not installed.
        UsageError: something must be told.
    """
    found = recognise(source, told.hints)
    try:
        card = _described(found, told, source, folder_name)
        return Adopted(_tried(card, found, told), found.weights)
    except ValueError as err:
        msg = f"{source}: cannot be used like that: it {err}"
        raise UsageError(msg) from err
    except (ModelError, UsageError) as err:
        msg = f"{source}: {err}"
        raise type(err)(msg) from err


def lay(adopted: Adopted, folder: Path) -> None:
    """Write a model folder: it is there whole or not at all.

    What a killed import left beside it goes.

    Raises:
        UsageError: something is there.
        OutputError: it cannot be written.
        BusyError: another import writes it.
    """
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        msg = f"{folder}: something is there; import to a folder that is new"
        raise UsageError(msg)
    with staging(folder) as made:
        write_whole(made / adopted.card.weights, adopted.weights)
        write_card(made, adopted.card)


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError:  # no folder, or not ours to look into
        return False


# The card


def _described(found: Found, told: Told, source: Path, folder_name: str) -> Card:
    """Return the card, of what is told first and what the file says else.

    Raises:
        UsageError: something must be told.
        ValueError: no run could use it; in words that go on after "it".
    """

    def value(name: str) -> Any:  # noqa: ANN401  (a field of Told)
        own = getattr(told, name)
        return found.says.get(name, own) if own in ((), None) else own

    bands = tuple(value("bands"))
    if len(bands) != found.bands:
        msg = (
            f"its network takes {found.bands} bands, got {len(bands)} names; say "
            "which, in their order: --bands blue,green,red"
        )
        raise UsageError(msg)
    tile = _tile(value("tile"))
    halo = told.halo
    if halo is None:
        halo = _halo(tile, found.architecture.multiple, found.says.get("halo"))
    unit, mean, std = _scaling(found, told)
    classes = _classes(tuple(value("classes")), told.colors, found.outputs)
    return Card(
        name=told.name or folder_name,
        version=told.version,
        bands=bands,
        unit=unit,
        mean=mean,
        std=std,
        tile=tile,
        halo=halo,
        classes=classes,
        fields=values_of(told.fields, classes),
        outputs=found.outputs,
        architecture=found.architecture,
        answers=told.answers or "logits",
        sha256=hashlib.sha256(found.weights).hexdigest(),
        gsd=value("gsd"),
        weights="weights" + KINDS[found.architecture.kind],
        about={
            "imported_from": source.name,
            "imported_sha256": found.digest,
            **told.about,
        },
    )


def _tile(wanted: int | None) -> int:
    """Return a tile's side: what is said, or one that fits most.

    Raises:
        UsageError: nothing could be told from such a tile, or no memory holds it.
    """
    tile = int(wanted or _TILE)
    if not _LEAST_TILE <= tile <= _MOST_TILE:
        msg = (
            f"its tile is of {tile} pixels, wanted {_LEAST_TILE} to {_MOST_TILE}: "
            "say another with --tile"
        )
        raise UsageError(msg)
    return tile


def _classes(
    names: tuple[str, ...], colors: tuple[str, ...], outputs: int
) -> tuple[LandClass, ...]:
    count = max(outputs, 2)
    if len(names) != count:
        what = "one answer: a background and a class" if outputs == 1 else "classes"
        msg = (
            f"its network gives {outputs if outputs > 1 else ''} {what}, got "
            f"{len(names)} names; say which, in their order: --classes water,trees"
        ).replace("  ", " ")
        raise UsageError(msg)
    colors = colors or tuple(map(color_of, range(count)))
    if len(colors) != count:
        msg = f"{count} classes and {len(colors)} colours"
        raise UsageError(msg)
    pairs = enumerate(zip(names, colors, strict=True))
    return tuple(LandClass(number, *pair) for number, pair in pairs)


def _scaling(
    found: Found, told: Told
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Return unit, mean and std: all as they are told, or all as the file says."""
    says: Mapping[str, Any] = found.says
    if told.unit or told.mean or told.std or "mean" not in says:
        says = {"unit": told.unit, "mean": told.mean, "std": told.std}
    mean, std = tuple(says["mean"]), tuple(says["std"])
    if not (mean and std):
        msg = (
            "say how values are scaled, (value - mean) / std: --mean and --std, one "
            "number or one for each band; 0 and 1 for values as they are"
        )
        raise UsageError(msg)
    mean, std = (
        numbers * found.bands if len(numbers) == 1 else numbers
        for numbers in (mean, std)
    )
    return says["unit"] or "reflectance", mean, std


def _halo(tile: int, multiple: int, wish: int | None) -> int:
    """Return the halo nearest to what is wished, or to an eighth of the tile.

    Raises:
        UsageError: none fits the tile.
    """
    aim = tile / 8 if wish is None else wish
    halos = [n for n in range(tile // 4 + 1) if _fits(tile, n, multiple)]
    if not halos:
        msg = f"no halo fits a tile of {tile} pixels: choose another --tile"
        raise UsageError(msg)
    return min(halos, key=lambda halo: abs(halo - aim))


def _fits(tile: int, halo: int, multiple: int) -> bool:
    try:
        shard_size(tile, halo)
    except ValueError:
        return False
    return tile % multiple == (tile - 2 * halo) % multiple == 0


# The network is seen to work


@torch.inference_mode()
def _tried(card: Card, found: Found, told: Told) -> Card:
    """Return the card of a network that works, with what trying it showed.

    Raises:
        ModelError: it fails, or its answer is not one number a class and pixel.
        UsageError: whether it gives logits or probabilities must be told.
    """
    shape = (_TRIED, len(card.bands), card.tile, card.tile)
    tiles = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    try:
        answers, held = footprint(found.module, tiles)
    except Exception as err:  # a network raises anything
        msg = f"fails on tiles of {card.tile} pixels: {last_line(err)}"
        raise ModelError(msg) from err
    wanted = [_TRIED, card.outputs, card.tile, card.tile]
    if not isinstance(answers, Tensor) or list(answers.shape) != wanted:
        is_one = isinstance(answers, Tensor)
        got = list(answers.shape) if is_one else f"a {type(answers).__name__}"
        msg = f"answers {got} to tiles {list(shape)}, wanted {wanted}"
        raise ModelError(msg)
    if not answers.isfinite().all():
        msg = "answers NaN or Inf to noise: a broken network"
        raise ModelError(msg)
    card = replace(card, answers=_kind_of(answers, told.answers))
    if card.architecture.kind == "unet":
        return card
    floats = max(1, ceil(held / (_FP32_BYTES * _TRIED * card.tile**2)))
    return replace(card, architecture=replace(card.architecture, floats=floats))


def _kind_of(answers: Tensor, told: str | None) -> str:
    """Return `logits` or `probabilities`: what answers to noise, (N, K, T, T), are."""
    is_between = bool(((answers >= 0) & (answers <= 1)).all())
    if told == "probabilities" and not is_between:
        msg = "answers beside 0 to 1: these are no probabilities, leave out --answers"
        raise UsageError(msg)
    if told or not is_between:
        return told or "logits"
    sums = answers.sum(dim=1)
    if answers.shape[1] > 1 and float((sums - 1).abs().max()) < _SUM_OFF:
        return "probabilities"
    msg = (
        "answers between 0 and 1, which may be either: say --answers probabilities "
        "(its last step is a sigmoid) or --answers logits"
    )
    raise UsageError(msg)
