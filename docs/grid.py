"""Draw docs/grid.png: how a scene is cut. `python docs/grid.py`, needs matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

SHARD, STRIDE, HALO = 384, 96, 16  # a shard of 4 x 4 cores, so that one can see them
WIDTH, HEIGHT = 1000, 860


def main() -> None:
    """Draw and save."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.add_patch(Rectangle((0, 0), WIDTH, HEIGHT, fc="#eef3e6", ec="black", lw=1.5))
    for x in range(0, WIDTH, STRIDE):
        axes.plot([x, x], [0, HEIGHT], color="#b8c4a5", lw=0.6, zorder=1)
    for y in range(0, HEIGHT, STRIDE):
        axes.plot([0, WIDTH], [y, y], color="#b8c4a5", lw=0.6, zorder=1)
    for x in range(0, WIDTH, SHARD):
        for y in range(0, HEIGHT, SHARD):
            wide, high = min(SHARD, WIDTH - x), min(SHARD, HEIGHT - y)
            axes.add_patch(Rectangle((x, y), wide, high, fc="none", ec="#33691e", lw=2))
            axes.text(x + wide - 8, y + 24, f"shard {y // SHARD}_{x // SHARD}",
                      ha="right", va="center", color="#33691e")  # fmt: skip
    axes.add_patch(Rectangle((SHARD, 0), SHARD, HEIGHT, fc="#1e88e5", alpha=0.12))
    axes.text(SHARD + 10, HEIGHT - 20, "run: read downwards", color="#1565c0")
    top = 4 * STRIDE + 128
    axes.add_patch(Rectangle((SHARD - HALO, top), SHARD + 2 * HALO, 128,
                             fc="#1e88e5", alpha=0.3))  # fmt: skip
    axes.text(SHARD + 10, top + 74, "strip: one row of blocks", color="#0d47a1")
    x, y = STRIDE, 2 * STRIDE
    axes.add_patch(Rectangle((x - HALO, y - HALO), 128, 128, fc="#fb8c00", alpha=0.35))
    axes.add_patch(
        Rectangle((x, y), STRIDE, STRIDE, fc="#fb8c00", ec="#e65100", lw=1.5)
    )
    axes.annotate("core", (x + 48, y + 48), ha="center", va="center")
    axes.annotate("tile = core + halo", (x + 112, y + 104), (x + 40, y + 150),
                  arrowprops={"arrowstyle": "->"})  # fmt: skip
    axes.set(xlim=(-20, WIDTH + 20), ylim=(HEIGHT + 20, -20), aspect="equal")
    axes.set_axis_off()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
