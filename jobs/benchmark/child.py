"""One whole job in a process of its own that looks at its memory; prints JSON.

Run by `memory.py`: one process for each scene, so that no peak is another's.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmark.simulate import SimulatedNetwork
from benchmark.whole import watched
from tileseg.base.memory import peak_rss_mb
from tileseg.cards.item import read_card
from tileseg.engines.worker import Recipe
from tileseg.job import run
from tileseg.network.device import resolve_device
from tileseg.network.model import Network, load
from tileseg.settings import Job

__all__: list[str] = []


def held_mb() -> float:
    """Return what this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def do(job: Job, rate: float | None) -> dict[str, Any]:
    """Load the network, then do the job; say what it took above that."""
    device = resolve_device(job.device, job.precision)
    network = load(job.model_path, read_card(job.model_path), device)
    loaded = held_mb()
    del network
    if rate:
        simulate(rate)
    with watched() as watch:
        start = time.perf_counter()
        record = run(job)
    if record.error:
        raise record.error
    return {
        "loaded_mb": loaded,
        "peak_mb": peak_rss_mb(),
        "first_tile_s": watch.first - start if watch.first else None,
        "seconds": time.perf_counter() - start,
        "run": record.values,
    }


def simulate(rate: float) -> None:
    """Put a simulated network in the place of the one that is loaded."""
    method = Recipe.network

    def network(recipe: Recipe) -> Network:
        return SimulatedNetwork(method(recipe), rate)

    Recipe.network = network  # type: ignore[assignment,method-assign]  # for this process


if __name__ == "__main__":
    wish = json.loads(sys.argv[1])
    print(json.dumps(do(Job(**wish["job"]), wish["rate"])))
