"""Samples of several contestants, taken in turns, and what is said of them."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# A sample repeats its call until it takes this long, so that the clock and the loop do not count.
SAMPLE_S = 2e-3
# Calls of a contestant before its sample, so that the caches hold what they hold where it alone is called again and
# again. It takes about five calls until they do, which without this would be most of a sample of a fast contestant and
# none of a slow one.
WARM_S = 10e-3
# Threads of OpenMP spin for some milliseconds after their work before they sleep, and would take a processor from
# contestants that run on threads of their own.
PAUSE_S = 5e-3
ROUNDS = 15
BUDGET_S = 3.0
_MOST_ROUNDS = 200


class Contestant(Protocol):
    """Something that can be timed."""

    pool: str

    def sample(self, calls: int) -> float:
        """Seconds per call, of so many in a row, after others that are not counted."""
        ...


@dataclass
class Local:
    """A call in this process."""

    call: Callable[[], Any]
    pool: str

    def sample(self, calls: int) -> float:
        call = self.call
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_S:
            call()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls


@dataclass(frozen=True)
class Series:
    """The samples of one contestant in seconds, one per round, and how many calls each was of."""

    calls: int
    samples: list[float]


def calibrate(contestant: Contestant, sample_s: float = SAMPLE_S) -> int:
    """Warms up, and gives the number of calls that a sample needs."""
    contestant.sample(1)
    calls = 1
    while True:
        taken = contestant.sample(calls) * calls
        if taken >= sample_s:
            return calls
        # The first calls may be slow still: approach it.
        calls = max(calls + 1, min(10 * calls, math.ceil(calls * 1.1 * sample_s / max(taken, 1e-9))))


def interleave(
    contestants: Sequence[Contestant],
    calls: Sequence[int],
    *,
    rounds: int = ROUNDS,
    budget_s: float = BUDGET_S,
    seed: int = 0,
    pause_s: float = PAUSE_S,
) -> list[list[float]]:
    """One sample of each per round, in an order shuffled anew each time; seconds per call, for each contestant.

    At least ``rounds`` rounds, and more until the budget is spent. What the machine does meanwhile, such as a change of
    clock, so meets all of a round alike.
    """
    order = list(range(len(contestants)))
    shuffle = random.Random(seed).shuffle
    samples: list[list[float]] = [[] for _ in contestants]
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        start, pool = time.perf_counter(), None
        for done in range(_MOST_ROUNDS):
            if done >= rounds and time.perf_counter() - start >= budget_s:
                break
            shuffle(order)
            for index in order:
                if pool not in (None, contestants[index].pool):
                    time.sleep(pause_s)
                pool = contestants[index].pool
                samples[index].append(contestants[index].sample(calls[index]))
    finally:
        if enabled:
            gc.enable()
    return samples


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def spread(samples: Sequence[float]) -> Spread:
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Ratio:
    """How many times longer a peer takes: of the medians, and the median and quartiles of the ratios round by round."""

    of_medians: float
    by_round: Spread


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Samples of the same rounds."""
    if len(peer) != len(ours):
        raise ValueError(f"ratios need samples of the same rounds, got {len(peer)} and {len(ours)}")
    return Ratio(spread(peer).median / spread(ours).median, spread([p / o for p, o in zip(peer, ours, strict=True)]))
