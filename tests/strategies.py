"""What hypothesis may draw: windows, grids, sets of shards and ways to cut them."""

from hypothesis import strategies as st

from tileseg.grid import Grid, Run
from tileseg.window import Window

SIDES = st.integers(0, 60)
PLACES = st.integers(-60, 60)

WINDOWS = st.builds(Window, row=PLACES, col=PLACES, height=SIDES, width=SIDES)


@st.composite
def geometries(draw, *, least=4, most=16, depth=1):
    """Draw (tile, halo): tile and stride are multiples of 2^depth, halo <= tile/4."""
    step = 1 << depth
    tile = draw(st.integers(-(-least // step), most // step)) * step
    halos = [halo for halo in range(tile // 4 + 1) if (tile - 2 * halo) % step == 0]
    return tile, draw(st.sampled_from(halos))


@st.composite
def grids(draw, *, most_shards=4, most_pixels=60):
    """Draw a grid of at most `most_shards` shards and `most_pixels` each way."""
    tile, halo = draw(geometries())
    shard = draw(st.integers(1, 3)) * (tile - 2 * halo)
    side = st.integers(1, min(most_pixels, most_shards * shard))
    return Grid(height=draw(side), width=draw(side), tile=tile, halo=halo, shard=shard)


def todos(grid):
    """Draw some, none or all shards of a grid."""
    every = list(Run(grid.shape))
    return st.sets(st.sampled_from(every)) | st.just(set(every))


@st.composite
def cuts(draw, grid):
    """Draw runs that cover the whole grid: any band and rows, parts, any order."""
    band, rows = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    first = draw(todos(grid))
    rest = set(Run(grid.shape)) - first
    runs = [
        run for part in (first, rest) for run in grid.runs(part, band=band, rows=rows)
    ]
    return draw(st.permutations(runs))
