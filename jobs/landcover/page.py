"""What jobs/study.py found, as tables and pictures of docs/models.md."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tileseg.base.classes import LandClass
from tileseg.cards.card import NODATA
from tileseg.evaluation.scores import Calibration, Confusion

__all__ = [
    "NETWORK",
    "Failure",
    "Score",
    "Setting",
    "as_both",
    "as_classes",
    "as_kept",
    "as_scores",
    "as_settings",
    "as_table",
    "draw_calibration",
    "draw_failures",
    "write_between",
]

NETWORK = "network"
SIDE = 96  # pixels of a failure's picture

Scores = Mapping[tuple[str, str], "Score"]
"""By source and way."""


@dataclass(frozen=True, slots=True)
class Score:
    """How right a way of mapping is at a source."""

    source: str
    way: str
    confusion: Confusion
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What a blend and a halo give, over all sources."""

    blend: str
    halo: int
    ratio: float
    """Seams: 1 where no border of a core shows."""
    macro_f1: float
    """Mean over the sources."""
    tiles: int
    """Forwarded."""


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """A check point that the map has wrong, and what is around it."""

    true: LandClass
    mapped: LandClass
    pixels: NDArray[np.float64]
    """(SIDE, SIDE, 3): red, green, blue, 0 to 1; the point is in the middle."""
    labels: NDArray[np.uint8]
    """(SIDE, SIDE)"""


def as_scores(scores: Scores) -> str:
    """Return a table: of each source the macro-F1 of each way of mapping it."""
    sources, ways = (list(dict.fromkeys(names)) for names in zip(*scores, strict=True))
    lines = []
    for source in sources:
        own = [scores[source, way].confusion for way in ways]
        best = max(round(found.macro_f1, 3) for found in own)
        cells = [bold(found.macro_f1, best) for found in own]
        accuracy = f"{own[0].accuracy:.3f}"
        lines.append([source, f"{own[0].total:,}", *cells, accuracy])
    return as_table(["source", "pixels", *ways, "accuracy of the network"], lines)


def bold(value: float, best: float) -> str:
    """Return a score, in bold if it is the best."""
    return f"**{value:.3f}**" if round(value, 3) == best else f"{value:.3f}"


def as_classes(scores: Scores, names: tuple[str, ...]) -> str:
    """Return a table: of each source the network's F1 by class, and how sure it is."""
    lines = []
    for (source, way), score in scores.items():
        if way == NETWORK and score.calibration:
            known, f1 = score.confusion.known, score.confusion.f1
            cells = [
                f"{value:.3f} ({count:,})" if count else "–"
                for value, count in zip(f1, known, strict=True)
            ]
            lines.append([source, *cells, f"{score.calibration.error:.3f}"])
    return as_table(["source", *names, "calibration error"], lines)


def as_both(scores: Scores, names: tuple[str, ...]) -> str:
    """Return a table: of each source how right each way is, and its F1 by class."""
    lines = [
        [
            *(source, way, f"{score.confusion.total:,}"),
            f"{score.confusion.accuracy:.3f}",
            f"{score.confusion.macro_f1:.3f}",
            *("–" if np.isnan(f1) else f"{f1:.3f}" for f1 in score.confusion.f1),
        ]
        for (source, way), score in sorted(scores.items())
    ]
    head = ["source", "model", "pixels", "accuracy", "macro-F1", *names]
    return as_table(head, lines)


def as_settings(settings: Sequence[Setting]) -> str:
    """Return a table: of each blend and halo what it gives and costs."""
    least = min(item.tiles for item in settings)
    lines = [
        [
            item.blend, str(item.halo), f"{item.ratio:.3f}", f"{item.macro_f1:.3f}",
            f"{item.tiles / least:.2f}",
        ]
        for item in settings
    ]  # fmt: skip
    return as_table(["blend", "halo", "seams", "macro-F1", "cost"], lines)


def as_kept(kept: Mapping[str, float]) -> str:
    """Return a table: of each scene the share of labels that bf16 leaves."""
    lines = [
        [f"`{'/'.join(Path(href).parts[-2:])}`", f"{share:.4f}"]
        for href, share in kept.items()
    ]
    return as_table(["scene", "labels as in fp32"], lines)


def as_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_between(page: Path, name: str, text: str) -> None:
    """Put a table between a page's two marks of its name."""
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = page.read_text()
    page.write_text(mark.sub(lambda found: f"{found[1]}{text}\n{found[2]}", old))


def draw_calibration(scores: Scores, path: Path) -> None:
    """Draw how often the network is right where it is so sure, of each source."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    for score in scores.values():
        if score.calibration:
            sure, right, count = score.calibration.curve()
            is_seen = count >= max(20, count.sum() / 1000)  # fewer say nothing
            axes.plot(sure[is_seen], right[is_seen], marker="o", label=score.source)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="confidence", ylabel="share that is right")
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def draw_failures(
    failures: Sequence[Failure], classes: Sequence[LandClass], path: Path
) -> None:
    """Draw the scene and the map around some mistakes."""
    colors = ListedColormap([f"#{item.color}" for item in classes])
    figure = Figure(figsize=(2 * len(failures), 4.6), layout="constrained")
    for (above, below), failure in zip(
        figure.subplots(2, len(failures)).T, failures, strict=True
    ):
        above.imshow(failure.pixels)
        shown = np.ma.masked_equal(failure.labels, NODATA)
        below.imshow(shown, cmap=colors, vmin=-0.5, vmax=len(classes) - 0.5)
        above.set_title(f"{failure.true.name}\nmapped {failure.mapped.name}", size=8)
        for axes in (above, below):
            axes.plot(SIDE // 2, SIDE // 2, "o", ms=9, mfc="none", mec="magenta")
            axes.set_axis_off()
    figure.savefig(path, metadata={"Software": None})
