"""How a training went, as a picture."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from tileseg.outputs.figures import png

__all__ = ["draw_curve"]


def draw_curve(epochs: Sequence[Mapping[str, float]], best: int) -> bytes:
    """Return a PNG: losses, and scores on the validation blocks, over the epochs.

    Args:
        epochs: `loss`, and of validation `validation_loss`, `macro_f1`, `accuracy`.
        best: the epoch that was kept, from 1.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = range(1, len(epochs) + 1)
    for axes, keys in (
        (left, ("loss", "validation_loss")),
        (right, ("macro_f1", "accuracy")),
    ):
        for key in keys:
            if any(key in epoch for epoch in epochs):
                values = [epoch.get(key, float("nan")) for epoch in epochs]
                axes.plot(numbers, values, marker=".", label=key.replace("_", " "))
        axes.axvline(best, color="0.7", linestyle="--", label=f"kept: epoch {best}")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    left.set_title("loss")
    right.set_title("validation blocks")
    return png(figure)
