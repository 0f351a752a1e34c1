# SPDX-License-Identifier: Apache-2.0
"""Rounds: in each, every contender once, in a new order, until the time is spent."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.account import Account, BenchError, last_line
from bench.startup.contenders import Contender

COUNTS = (1, 16, 64)
SHARES = {1: 0.25, 16: 0.25, 64: 0.5}
"""Of the time; more for 64, where a round is long."""
MOST_ROUNDS = 300
FEWEST_ROUNDS = 3
REST = 0.004
"""Seconds after each measurement, and per 16 ranks: namespaces go after their last process has ended."""


@dataclass
class Series:
    """Measurements of one contender with one N: wall in µs until all had ended, CPU in µs of all of them."""

    wall: list[int] = field(default_factory=list)
    cpu: list[int] = field(default_factory=list)


Results = dict[str, dict[int, Series]]


@dataclass(frozen=True)
class Sample:
    """One measurement, µs; failed: how many of the N ended with another status than 0."""

    wall: int
    cpu: int
    failed: int


def once(account: Account, driver: str, contender: Contender, count: int) -> Sample:
    """Start N of it.  Raises BenchError if one of them fails: a wrong command line is fast, too."""
    added = contender.prepare(count)
    words = [driver, str(count), ",".join(contender.rank_variables), "--", *contender.command]
    done = account.run(words, env=added)
    if done.returncode:
        raise BenchError(f"{contender.name}: {last_line(done.stderr)}")
    wall, user, system, failed = (int(word) for word in done.stdout.split()[-4:])
    if failed:
        raise BenchError(f"{contender.name}: {failed} of {count} failed: {last_line(done.stderr)}")
    return Sample(wall // 1000, user + system, failed)


def _round(account: Account, driver: str, contenders: list[Contender], count: int, results: Results) -> None:
    random.shuffle(contenders)
    for contender in contenders:
        sample = once(account, driver, contender, count)
        series = results[contender.key][count]
        series.wall.append(sample.wall)
        series.cpu.append(sample.cpu)
        time.sleep(REST * (1 + count / 16))


def measure(
    account: Account,
    driver: str,
    contenders: Sequence[Contender],
    budget: float,
    counts: Sequence[int] = COUNTS,
) -> Results:
    """All contenders for all N, within about so many seconds, and never fewer than three rounds."""
    results: Results = {c.key: {count: Series() for count in counts} for c in contenders}
    total = sum(SHARES[count] for count in counts)
    spent = dict.fromkeys(counts, 0.0)
    rounds = dict.fromkeys(counts, 0)
    while True:
        due = [
            count for count in counts
            if rounds[count] < FEWEST_ROUNDS
            or (rounds[count] < MOST_ROUNDS and spent[count] < budget * SHARES[count] / total)
        ]  # fmt: skip
        if not due:
            return results
        count = min(due, key=lambda n: spent[n] / SHARES[n])
        start = time.monotonic()
        _round(account, driver, [c for c in contenders if rounds[count] % c.every == 0], count, results)
        spent[count] += time.monotonic() - start
        rounds[count] += 1
