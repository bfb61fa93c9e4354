"""An evaluation, to be read by a person: a table for a terminal, and a picture."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tileseg.evaluation.evaluate import Evaluation
from tileseg.outputs.figures import plain_text, png

__all__ = ["as_picture", "as_text"]

_NAME = 16  # letters of a class
_BELOW: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.08),
    "ncols": 3,
    "fontsize": "small",
}
_COLUMNS = ("precision", "recall", "f1", "iou", "boundary_f1")


def as_text(evaluation: Evaluation) -> str:
    """Return tables: true by mapped class, scores, areas."""
    values = evaluation.as_dict()
    names = evaluation.confusion.names
    wide = max(6, min(_NAME, max(map(len, names)))) + 2
    lines = [*_confusion(evaluation, wide), "", *_scores(values, wide)]
    lines += ["", *_areas(values, wide)]
    if few := evaluation.unsampled:
        lines.append(f"no areas: fewer than 2 places are mapped {', '.join(few)}")
    if evaluation.calibration:
        error = values["calibration_error"]
        lines += ["", f"confidence is off by {_number(error)} on average (ECE)"]
    return "\n".join(lines)


def _confusion(evaluation: Evaluation, wide: int) -> Iterator[str]:
    found = evaluation.confusion
    heads = (*found.names, "nodata")
    yield "true \\ mapped".ljust(wide) + "".join(f" {name[:11]:>11}" for name in heads)
    for name, row in zip(found.names, found.counts.tolist(), strict=True):
        yield f"{name[:_NAME]:<{wide}}" + "".join(f" {count:>11,}" for count in row)
    yield (
        f"accuracy {_number(found.accuracy)} at {found.total:,} places, macro-F1 "
        f"{_number(found.macro_f1)}, weighted F1 {_number(found.weighted_f1)}, "
        f"macro-IoU {_number(found.macro_iou)}"
    )


def _scores(values: dict[str, Any], wide: int) -> Iterator[str]:
    columns = [c for c in _COLUMNS if any(k[c] is not None for k in values["classes"])]
    yield " " * wide + "".join(f" {head.replace('_f1', ' F1'):>11}" for head in columns)
    boundary = {"boundary_f1": values["boundary_macro_f1"]}
    means = (
        {"name": "macro", **values["macro"], **boundary},
        {"name": "weighted", **values["weighted"]},
    )
    for item in (*values["classes"], *means):
        cells = "".join(f" {_number(item.get(column)):>11}" for column in columns)
        yield f"{item['name'][:_NAME]:<{wide}}{cells}"


def _areas(values: dict[str, Any], wide: int) -> Iterator[str]:
    unit = values["unit"]
    has_estimates = values["overall"] is not None
    head = f"{'mapped ' + unit:>15}"
    if has_estimates:
        head += f"{'estimated':>15}{'user':>17}{'producer':>17}   (95 % intervals)"
    yield " " * wide + head
    for item in values["classes"]:
        line = f"{item['name'][:_NAME]:<{wide}}{item['mapped']:>15,.1f}"
        if has_estimates:
            line += f"{_within(item, 'estimated', ',.1f'):>24}"
            line += f"{_within(item, 'users', '.3f'):>17}"
            line += f"{_within(item, 'producers', '.3f'):>17}"
        yield line
    if has_estimates:
        overall, error = values["overall"], values["overall_error"]
        yield f"{overall:.3f} \u00b1 {error:.3f} of the area is mapped right"


def _within(item: dict[str, Any], key: str, form: str) -> str:
    value, error = item[key], item[f"{key}_error"]
    if value is None:
        return "\u2013"
    return f"{value:{form}} \u00b1 {'?' if error is None else format(error, form)}"


def _number(value: float | None) -> str:
    return "\u2013" if value is None or math.isnan(value) else f"{value:.3f}"


@plain_text()
def as_picture(evaluation: Evaluation) -> bytes:
    """Return a PNG: who is taken for whom, scores, areas, and calibration if known."""
    panels = 3 + (evaluation.calibration is not None)
    figure = Figure(figsize=(4.6 * panels, 4.6), layout="constrained")
    axes = iter(figure.subplots(1, panels))
    _draw_confusion(next(axes), evaluation)
    _draw_scores(next(axes), evaluation)
    _draw_areas(next(axes), evaluation)
    if evaluation.calibration:
        _draw_calibration(next(axes), evaluation)
    return png(figure)


def _draw_confusion(axes: Any, evaluation: Evaluation) -> None:  # noqa: ANN401  (matplotlib's)
    found = evaluation.confusion
    shares = found.counts / np.maximum(found.counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:  # noqa: PLR2004  (what would not be 0.00)
            color = "white" if share > 0.5 else "black"  # noqa: PLR2004
            axes.text(
                column, row, f"{share:.2f}", ha="center", va="center", color=color
            )
    heads = [*found.names, "nodata"]
    axes.set_xticks(range(len(heads)), heads, rotation=45, ha="right")
    axes.set_yticks(range(len(found.names)), found.names)
    axes.set(xlabel="mapped", ylabel="true")
    axes.set_title(f"accuracy {_number(found.accuracy)} at {found.total:,} places")


def _draw_scores(axes: Any, evaluation: Evaluation) -> None:  # noqa: ANN401  (matplotlib's)
    found = evaluation.confusion
    at = np.arange(len(found.names))
    for offset, (name, scores) in zip(
        (0.27, 0, -0.27),
        (("precision", found.precision), ("recall", found.recall), ("F1", found.f1)),
        strict=True,
    ):
        axes.barh(at - offset, np.nan_to_num(scores), height=0.25, label=name)
    axes.set_yticks(at, found.names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.legend(**_BELOW)
    axes.set_title(f"macro-F1 {_number(found.macro_f1)}")


def _draw_areas(axes: Any, evaluation: Evaluation) -> None:  # noqa: ANN401  (matplotlib's)
    names, areas = evaluation.confusion.names, evaluation.areas
    at = np.arange(len(names))
    axes.barh(at - 0.2, evaluation.mapped, height=0.38, label="mapped", color="0.75")
    if areas and np.isfinite(areas.overall):
        axes.barh(
            at + 0.2, areas.area, height=0.38, xerr=areas.area_error, capsize=3,
            label="estimated, 95 %", color="tab:green",
        )  # fmt: skip
        axes.legend(**_BELOW)
    axes.set_yticks(at, names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_title(f"area, {evaluation.unit}")


def _draw_calibration(axes: Any, evaluation: Evaluation) -> None:  # noqa: ANN401  (matplotlib's)
    assert evaluation.calibration, "the caller has seen it"
    sure, right, _ = evaluation.calibration.curve()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    axes.plot(sure, right, marker="o")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="confidence", ylabel="share that is right")
    axes.set_title(f"calibration error {_number(evaluation.calibration.error)}")
