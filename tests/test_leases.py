"""Every shard ends exactly once, whoever dies; no Ray is needed to see it."""

import random
from collections import Counter

import pytest

from tileseg.engines.leases import MAX_TRIES, Leases
from tileseg.grid import Grid, Run, Shard


def make_grid(rows, columns, shard=96):
    return Grid(height=rows * shard - 5, width=columns * shard, tile=32, halo=4,
                shard=shard)  # fmt: skip


def make_leases(rows, columns, workers, band=None):
    grid = make_grid(rows, columns)
    everything = list(Run(grid.shape))
    runs = grid.runs(everything, band=band or columns, rows=rows)
    return Leases(grid, runs, workers), everything


class Simulation:
    """Workers that take leases in order, finish shards in order, and die."""

    def __init__(self, leases, workers, seed, poison=()):
        self.leases, self.poison = leases, set(poison)
        self.random = random.Random(seed)
        self.held = {f"worker {number}": [] for number in range(workers)}
        self.done, self.given_up, self.deaths = Counter(), Counter(), 0

    def step(self, *, death):
        name = self.random.choice(list(self.held))
        for run in self.leases.take(name):
            self.held[name] += list(run)
        is_poisoned = bool(self.held[name]) and self.held[name][0] in self.poison
        if is_poisoned or self.random.random() < death:
            self.die(name)
        elif self.held[name]:
            shard = self.held[name].pop(0)
            self.done[shard] += 1
            self.leases.settle(name, shard)

    def die(self, name):
        self.deaths += 1
        self.given_up.update(self.leases.lose(name))
        self.held[name] = []

    def finish(self, death=0.0):
        for _ in range(100_000):
            if self.leases.is_done:
                return
            self.step(death=death)
        pytest.fail("the work does not end")


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "band"), [(1, 1, 1), (7, 3, 2), (40, 5, 5)]
)
def test_every_shard_is_done_exactly_once(workers, rows, columns, band):
    leases, everything = make_leases(rows, columns, workers, band)
    simulation = Simulation(leases, workers, seed=workers)

    simulation.finish()

    assert Counter(everything) == simulation.done
    assert leases.retries == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_shard_is_lost_or_done_twice_when_workers_die(seed):
    """A few deaths: everything is done all the same, unless it cost three workers."""
    leases, everything = make_leases(11, 4, 3, band=2)
    simulation = Simulation(leases, 3, seed)

    simulation.finish(death=0.02)

    assert Counter(everything) == simulation.done + simulation.given_up


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_poison_shard_is_told_from_its_neighbours(workers):
    """It costs exactly three workers and is given up; all others are done."""
    poison = Shard(3, 1)
    leases, everything = make_leases(9, 3, workers, band=3)
    simulation = Simulation(leases, workers, seed=workers, poison=[poison])

    simulation.finish()

    assert Counter([poison]) == simulation.given_up
    assert Counter(everything) == simulation.done + simulation.given_up
    assert simulation.deaths == MAX_TRIES


def test_leases_shrink_towards_the_end():
    """Long ones first, since every cut is a row of blocks read twice."""
    leases, _ = make_leases(64, 2, workers=2)

    sizes = []
    while not leases.is_done:
        for name in ("one", "other"):
            for run in leases.take(name):
                sizes.append(run.shards.size)
                for shard in run:
                    leases.settle(name, shard)

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 8
    assert sizes[-1] == 1


def test_one_worker_reads_a_run_in_one_piece():
    leases, everything = make_leases(12, 2, workers=1)

    (run,) = leases.take("only")

    assert everything == list(run)


@pytest.mark.parametrize(
    ("side", "workers"), [(8, 2), (8, 8), (14, 4), (14, 16), (27, 16)]
)
def test_nobody_waits_long_for_the_last_one(side, workers):
    """Workers of equal speed end within twice the time of a perfect division."""
    leases, everything = make_leases(side, side, workers)
    held = {f"worker {number}": [] for number in range(workers)}

    steps = 0
    while not leases.is_done:
        steps += 1
        for name, shards in held.items():
            for run in leases.take(name):
                shards += list(run)
            if shards:
                leases.settle(name, shards.pop(0))

    assert steps <= 2 * -(-len(everything) // workers)


@pytest.mark.parametrize("is_drained", [False, True])
def test_suspects_stay_alone_whoever_has_them(is_drained):
    """A worker on trial whose node is taken away gives them back as what they are."""
    leases, everything = make_leases(1, 3, workers=1)
    leases.take("one")
    leases.lose("one")  # all three were in hand
    (trial,) = leases.take("two")
    assert leases.is_on_trial("two")

    if is_drained:
        leases.give_back("two")
    else:
        leases.lose("two", is_fault=False)

    again = [leases.take(f"worker {number}") for number in range(3)]
    assert all(len(runs) == 1 and runs[0].shards.size == 1 for runs in again)
    assert {next(iter(runs[0])) for runs in again} == set(everything)
    assert trial in [runs[0] for runs in again]
