"""What was measured, as a document: `docs/performance.md`."""

from typing import Any

from benchmark.machine import in_words
from benchmark.table import Row, as_markdown

__all__ = ["as_document"]

_HEAD = """\
# Performance

What `python jobs/bench.py` prints; `--markdown` writes this page. Speeds of different machines cannot be
compared; the ratios can, and they are what tileseg is judged by. Each figure is the median over rounds in which all that is
compared takes turns; `spread` is how far the rounds lie apart, as a share of it. `tiles_s` are tiles of 128²
a second, `mpx_s` millions of scene pixels a second. The scenes are correlated noise from a seed. Base width 16 is tileseg's own model,
64 the same one widened, whose answers are the same; narrower ones have random weights. None of that changes a speed, but where
there is bf16 it decides whether the guard lets it be used.
"""

_PARTS = {
    "alone": """\
The network alone, one batch over and over: the limit of every whole job. NCHW with torch's defaults is
what other libraries run.""",
    "stages": """\
Each stage alone. `tiles_s` is how many tiles of the network it would keep up with.""",
    "whole": """\
`ratio` is forwarded tiles a second over those of the same network alone, in the same process and precision, from the
call of the job to its end; imports are done. `as a process` has Python's start in it, and `ratio` is to the same network.
`after_last_s` is from the network's last answer to the closed COG, read again, with its quicklook.""",
    "incremental": """\
One square of 2 % of the scene is changed, then all is made anew elsewhere; both masks are equal, byte for byte. `forward_s` is the device's time,
`of_whole` its share of what the whole takes, `compare_s` what reading the scene beside the old result takes.""",
    "memory": """\
One process for each row. `above_mb` is its peak above the loaded network, `predicted_mb` what the plan said before.
A simulated network of no cost holds no activations, and what is read and made is the same.""",
    "polygons": """\
Masks like land cover (patches, half a percent of single pixels) to files of polygons, in processes of their own, from the start of Python to the
closed file. `times` is how much faster than rasterio's shapes written by pyogrio; `peak_mb` is held by all processes together.""",
    "peers": """\
Whole jobs on one scene, each library as its documentation uses it, in processes of their own; imports are done, loading the network
counts. `ratio` is to the same library's own network alone in its process; `agree` is the share of pixels with the label of
a reference: the plain network in fp32, tile by tile.""",
    "simulate": """\
A device of known speed stands in for the network; it leaves the processor alone. `tiles_s` are of one worker. A disk of 0.4 takes 0.4 of
the device's time to read, and to write; `in turn` is without any overlap. `resumed` is what it takes to find all shards
done, as a share of making them.""",
    "scale": """\
Many workers on one scene, and what the driver can take.""",
}


def as_document(results: list[dict[str, Any]]) -> str:
    """Return the page of some results; without one of a GPU it says that."""
    sections = [_section(result) for result in results]
    if not any(result["machine"]["gpu"] for result in results):
        sections.append("## GPU\n\nNot measured.\n")
    return "\n".join([_HEAD, *sections])


def _section(result: dict[str, Any]) -> str:
    known = result["machine"]
    rows = [Row(**row) for row in result["rows"]]
    name = known["gpu"] or f"{known['cores']} CPU cores"
    lines = [f"## {name}, {known['date'][:10]}\n", in_words(known), ""]
    for part, text in _PARTS.items():
        if own := [row for row in rows if row.part == part]:
            lines += [f"### {part}\n", text, "", as_markdown(own)]
    return "\n".join(lines)
