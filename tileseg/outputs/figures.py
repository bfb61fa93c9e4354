"""What all pictures by matplotlib have in common: letters as they are, and PNG."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["plain_text", "png"]


@contextmanager
def plain_text() -> Iterator[None]:
    """Take names from other people's files as names, while a figure is made and drawn.

    Between dollars they are no formulas; letters that the font has not are boxes.
    """
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def png(figure: Figure, **options: Any) -> bytes:  # noqa: ANN401  (pillow's)
    """Return a figure as a file; `savefig` would draw everything twice."""
    buffer, plain = BytesIO(), {"Software": None}
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(buffer, metadata=plain, pil_kwargs=options)  # type: ignore[no-untyped-call]  # matplotlib's
    return buffer.getvalue()
