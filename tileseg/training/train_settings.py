"""What may be asked of a training: its fields, from wherever they come."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, Self

from tileseg.base.builtin import model_folder, not_ours, portable_name
from tileseg.base.choices import DEVICES, ENGINES, UNITS
from tileseg.base.classes import color_of, renaming
from tileseg.base.fields import Limits, check_values, checked, one_of, read_toml
from tileseg.errors import UsageError

__all__ = ["BASE_RATE", "RATE", "Settled", "Training", "read_training", "with_colors"]

RATE = 2e-3
"""Peak learning rate, where nobody says one."""
BASE_RATE = 5e-4
"""The same from a base."""

_LABEL = re.compile(r"(?P<name>[^=]+?)(?:=#?(?P<color>[0-9A-Fa-f]{6}))?")
_MOST_CLASSES = 255
_LARGEST_BLOCK = 4096  # pixels of its side: labels of some are held whole
_HALOS = 4  # that go into the side of a tile, at least: as the card wants it


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training. Every field but the first three has a default that fits most.

    That of `unit`, `width`, `depth`, `tile` and `halo` is the base's: see `settled`.
    """

    scenes: tuple[str, ...]
    """GeoTIFFs, paths or addresses; of one sensor or several."""
    labels: tuple[str, ...]
    """What is known of each scene, in their order: rasters, polygons or points."""
    to: str
    """Model folder to write; unfinished work lies in `<it>.work`."""
    classes: tuple[str, ...] = ()
    """`name` or `name=RRGGBB`, in the order of their values; empty for those that the
    labels name."""
    bands: tuple[str, ...] = ()
    """In the network's order; empty for all of the first scene, or the base's."""
    unit: str | None = None
    """What values are in: by `scale` or each scene's GDAL tags, or (`dn`) as stored."""
    scale: float | None = None
    """Of all scenes: reflectance = stored * scale + offset; None for their own tags."""
    offset: float | None = None
    """See `scale`; 0 if only that is given."""
    column: str = "class"
    """Of polygons or points: which one says the class."""
    renamed: tuple[str, ...] = ()
    """`VALUE=CLASS`: values or names of the labels as the model has them; 255: none."""
    base: str = ""
    """Model to go on from: its weights, bands, scaling and `tileseg:fields`; empty for
    random weights. Other classes get a new last layer, one logit a second beside it,
    and are no fields. Another unit, width, depth, tile or halo than its own is refused.
    """
    own_scaling: bool = False
    """Scale as these scenes ask, not as the base does; then the unit may be another."""
    width: int | None = None
    """Channels of the U-Net's first stage."""
    depth: int | None = None
    """Poolings."""
    tile: int | None = None
    """Side of a tile in pixels."""
    halo: int | None = None
    """Margin of a tile that is not judged, as in segmenting."""
    epochs: int = 10
    """At most; each ends with a look at the validation blocks."""
    steps: int = 100
    """Batches in an epoch."""
    batch_size: int = 8
    """Tiles in a batch."""
    learning_rate: float | None = None
    """Peak of AdamW's; None for `RATE`, from a base `BASE_RATE`."""
    weight_decay: float = 0.01
    """AdamW's."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls, a cosine."""
    dice: float = 0.5
    """Weight of the Dice loss beside the cross-entropy."""
    smoothing: float = 0.05
    """Of the labels, in the cross-entropy."""
    jitter: float = 1.0
    """How much brightness, haze and noise are varied; 0 for not. Tiles are turned and
    mirrored too."""
    weights: tuple[float, ...] = ()
    """How often tiles are drawn of each scene, in their order; empty for 1 of all. For
    labels that are better than others."""
    block: int = 256
    """Side in pixels of the blocks that are for training, validation or test."""
    margin: int | None = None
    """Pixels that training tiles keep from blocks for the others; None for the halo."""
    validation: float = 0.15
    """Share of the labels for choosing the best epoch and for calibration."""
    test: float = 0.15
    """Share of the labels that is judged once, at the end."""
    judged: int = 512
    """Tiles of either that are looked at, at most."""
    patience: int = 6
    """Epochs without a better macro-F1 after which training ends; the best one is
    kept."""
    seed: int = 0
    """Of the blocks, the weights and what is drawn."""
    device: str = "auto"
    """Where the network computes. `auto`: on a GPU if there is one."""
    engine: str = "local"
    """Who trains: this process, or (`ray`) workers of Ray Train that share batches."""
    workers: int | None = None
    """Of Ray; None for one per GPU, or one on the CPU of each node, up to a tile
    each."""
    overwrite: bool = False
    """Replace another model in the folder, and another training's work."""

    def __post_init__(self) -> None:
        """Refuse what no training could mean."""
        check_values(self, self._limits)
        not_ours(self.to)
        renaming(self.renamed)
        if self.offset is not None and self.scale is None:
            msg = "offset: means nothing without scale; give both"
            raise UsageError(msg)
        if self.scale is not None and self.unit == "dn":
            msg = "scale: means nothing with unit dn, values as they are stored"
            raise UsageError(msg)

    def _limits(self) -> Limits:
        """Return, for each field with limits, its test and what it wants."""
        positive = (lambda number: number > 0), "more than 0"
        count = (lambda number: number >= 0), "0 or more"
        share = (lambda part: 0 <= part < 0.5), "0 or more, less than 0.5"  # noqa: PLR2004
        number = (lambda value: 0 <= value < inf), "a number, 0 or more"
        return {
            "scenes": ((lambda some: len(some) > 0), "a scene: --scene SCENE"),
            "labels": (
                lambda some: len(some) == len(self.scenes),
                f"one for each of {len(self.scenes)} scenes: --labels FILE",
            ),
            "to": (
                lambda path: Path(path).name not in ("", "..") and "://" not in path,
                "a model folder, on a disk: --to DIR",
            ),
            "weights": (
                lambda some: not some
                or (len(some) == len(self.scenes) and all(0 < it < inf for it in some)),
                "a number above 0 for each scene, or none",
            ),
            "classes": (
                lambda some: not some or _are_classes(some),
                "2 to 255 names, each once: --classes water=2b7bba,trees",
            ),
            "unit": one_of(*UNITS),
            "scale": (lambda x: isfinite(x) and x != 0, "a finite number, not 0"),
            "offset": (isfinite, "a finite number"),
            "device": one_of("auto", *DEVICES),
            "engine": one_of(*ENGINES),
            "workers": (
                lambda count: 0 < count <= (1, self.batch_size)[self.engine == "ray"],
                f"1, or with --engine ray up to a tile each ({self.batch_size})",
            ),
            "width": positive, "depth": positive, "tile": positive, "epochs": positive,
            "steps": positive, "batch_size": positive, "judged": positive,
            "patience": positive, "margin": count, "seed": count, "dice": number,
            "jitter": number, "weight_decay": number, "validation": share,
            "test": share,
            "learning_rate": (lambda rate: 0 < rate < 1, "between 0 and 1"),
            "warm_up": (lambda part: 0 <= part < 1, "0 or more, less than 1"),
            "smoothing": (lambda part: 0 <= part < 1, "0 or more, less than 1"),
        }  # fmt: skip

    def settled(self, base: Mapping[str, Any] | None = None) -> "Settled":
        """Return the same with all that a base decides: its own, or the defaults.

        Args:
            base: the model to go on from: its unit, width, depth, tile and halo.

        Raises:
            UsageError: another one is asked for, or does not go with the rest.
        """
        asked = {item.name: getattr(self, item.name) for item in fields(self)}
        if base is None:
            return Settled(**{k: it for k, it in asked.items() if it is not None})
        for name, known in base.items():
            if asked[name] is None:
                asked[name] = known
            elif asked[name] != known and not (name == "unit" and self.own_scaling):
                msg = (
                    f"{name}: got {asked[name]!r}, wanted {known!r}, as {self.base} has"
                    "; leave it out, or train without --from"
                )
                raise UsageError(msg)
        return Settled(**asked)

    def placed(self) -> Self:
        """Return the same by paths that are the same wherever a process runs."""
        return replace(
            self,
            labels=tuple(str(Path(path).absolute()) for path in self.labels),
            to=str(self.folder.absolute()),
            base=portable_name(self.base),
        )

    @property
    def folder(self) -> Path:
        """Where the model goes."""
        return Path(self.to)

    @property
    def base_folder(self) -> Path:
        """Model to go on from."""
        return model_folder(self.base)

    @property
    def work(self) -> Path:
        """Where unfinished work lies."""
        return self.folder.with_name(self.folder.name + ".work")

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        return self.learning_rate or (BASE_RATE if self.base else RATE)

    @property
    def names_and_colors(self) -> tuple[tuple[str, str], ...]:
        """Name and colour of each class."""
        return with_colors(self.classes)

    @property
    def renaming(self) -> dict[str, str]:
        """What the labels say -> the model's class."""
        return renaming(self.renamed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Training):
    """A training of which all is said that a base may decide; else these defaults."""

    unit: str = "reflectance"
    width: int = 16
    depth: int = 4
    tile: int = 128
    halo: int = 16

    @property
    def keep(self) -> int:
        """Pixels that training tiles keep from other blocks."""
        return self.halo if self.margin is None else self.margin

    def _limits(self) -> Limits:
        least = self.tile + 2 * self.keep
        return {
            # Slots make another class, which super() without arguments does not know.
            **super(Settled, self)._limits(),
            "halo": (
                lambda halo: 0 <= _HALOS * halo <= self.tile,
                f"at most a quarter of the tile ({self.tile})",
            ),
            "block": (
                lambda side: least <= side <= _LARGEST_BLOCK,
                f"{least} (a tile and a margin on both sides) to {_LARGEST_BLOCK}",
            ),
        }


def with_colors(classes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return name and colour of each `name` or `name=RRGGBB`."""
    found = [_LABEL.fullmatch(text.strip()) for text in classes]
    return tuple(
        (match["name"].strip(), (match["color"] or color_of(n)).lower())
        for n, match in enumerate(found)
        if match
    )


def _are_classes(classes: tuple[str, ...]) -> bool:
    names = {name for name, _ in with_colors(classes)}
    return 1 < len(classes) <= _MOST_CLASSES and len(names) == len(classes)


def read_training(path: str) -> dict[str, Any]:
    """Read the fields of a `Training` from a TOML file.

    Raises:
        UsageError: it is unreadable, or names a field that there is not.
    """
    return checked(path, read_toml(path), Training)
