"""Integer rectangles on a grid of rows and columns. Knows nothing of what they hold."""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of whole cells; rows and columns may be negative (outside)."""

    row: int
    """First row."""
    col: int
    """First column."""
    height: int
    """Number of rows, 0 or more."""
    width: int
    """Number of columns, 0 or more."""

    def __post_init__(self) -> None:
        """Refuse negative sizes."""
        if self.height < 0 or self.width < 0:
            msg = f"window size must be >= 0, got {self.height} x {self.width}"
            raise ValueError(msg)

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an array whose first cell is (0, 0)."""
        return slice(self.row, self.row_stop), slice(self.col, self.col_stop)

    def pad(self, cells: int) -> "Window":
        """Return the window grown by `cells` on every side (shrunk if negative)."""
        return Window(
            self.row - cells,
            self.col - cells,
            self.height + 2 * cells,
            self.width + 2 * cells,
        )

    def intersect(self, other: "Window") -> "Window":
        """Return the common rectangle; of size 0 where there is none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.row_stop, other.row_stop) - row
        width = min(self.col_stop, other.col_stop) - col
        return Window(row, col, max(height, 0), max(width, 0))

    def relative_to(self, origin: "Window") -> "Window":
        """Return the same cells counted from the first cell of `origin`."""
        return Window(
            self.row - origin.row, self.col - origin.col, self.height, self.width
        )

    def scale(self, factor: int) -> "Window":
        """Return the rectangle in cells `factor` times finer."""
        return Window(
            self.row * factor,
            self.col * factor,
            self.height * factor,
            self.width * factor,
        )

    def cells(self) -> Iterator["Window"]:
        """Yield the cells as windows of one each, row by row."""
        for row in range(self.row, self.row_stop):
            for col in range(self.col, self.col_stop):
                yield Window(row, col, 1, 1)

    def coarsen(self, factor: int) -> "Window":
        """Return the cells `factor` times coarser that the rectangle meets."""
        row, col = self.row // factor, self.col // factor
        height = -(-self.row_stop // factor) - row
        width = -(-self.col_stop // factor) - col
        return Window(row, col, height, width)
