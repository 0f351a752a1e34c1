# SPDX-License-Identifier: Apache-2.0
"""From start-up events of many ranks and nodes to figures.  Pure."""

from __future__ import annotations

from collections.abc import Iterable

from hpcpod.frozen import frozen
from hpcpod.launcher.events import Event, Origin, PrepareEvent, RankEvent

PREPARE_ORDER = ("resolve", "verify", "unpack", "plan", "create")
"""Phases of a preparation, in the order in which they run; unknown ones follow, by name."""
GOT_POD = {
    "found": "found pod",
    "waited": "waited",
    "created": "created pod",
    "prepared": "prepared",
}
"""Rows for the time from start to found: ranks of a node that wait, and the one that they wait for, differ
by design and are no sample of the same thing."""
LAUNCHED, MPIEXEC = "launched", "mpiexec"
"""How of a rank that the image's mpiexec started; row for the time that mpiexec took."""
ENTER, EXEC, TOTAL = "enter", "exec", "start to exec"
RANK_ORDER = (*GOT_POD.values(), ENTER, MPIEXEC, EXEC, TOTAL)


@frozen
class Sample:
    """One measured duration and whose it is.  rank: None for a phase that a node does once."""

    duration_ns: int
    node: str
    rank: int | None


@frozen
class PhaseFigures:
    """Distribution of one phase.  A percentile is a sample, by nearest rank."""

    name: str
    count: int
    p50_ns: int
    p95_ns: int
    max_ns: int
    slowest: Sample


@frozen
class Start:
    """One rank's start.  phases: (name, nanoseconds) in order; the last is TOTAL."""

    rank: int
    node: str
    pid: int
    phases: tuple[tuple[str, int], ...]

    @property
    def total_ns(self) -> int:
        """From the start of the front, the rank's or its mpiexec's, to the rank's program."""
        return self.phases[-1][1]


@frozen
class Report:
    """One scope's start.

    nodes: sorted.  ranks: different ones; starts: their programs (a step may start several, one after the
    other).  first_start_ns to last_exec_ns spans them all.  slowest: the rank with the longest time from
    its start to its program, with its phases.
    """

    launcher: str
    job: str
    step: str
    scope: str
    images: tuple[str, ...]
    digests: tuple[str, ...]
    nodes: tuple[str, ...]
    ranks: int
    starts: int
    first_start_ns: int
    last_exec_ns: int
    prepare: tuple[PhaseFigures, ...]
    rank: tuple[PhaseFigures, ...]
    slowest: Start


def percentile(ordered: list[Sample], percent: int) -> Sample:
    """Nearest-rank percentile of samples in ascending order; not empty."""
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


def _figures(name: str, samples: list[Sample]) -> PhaseFigures:
    ordered = sorted(samples, key=lambda s: (s.duration_ns, s.node, -1 if s.rank is None else s.rank))
    return PhaseFigures(
        name=name,
        count=len(ordered),
        p50_ns=percentile(ordered, 50).duration_ns,
        p95_ns=percentile(ordered, 95).duration_ns,
        max_ns=ordered[-1].duration_ns,
        slowest=ordered[-1],
    )


def _pod_phases(event: RankEvent) -> tuple[tuple[str, int], ...]:
    """How a process came into the pod: a rank's, or that of a local launch's mpiexec."""
    return (
        (GOT_POD[event.how], event.found_ns - event.start_ns),
        (ENTER, event.entered_ns - event.found_ns),
    )


def _start_of(event: RankEvent, front: RankEvent | None) -> Start:
    """One rank's phases; front: the process that became the mpiexec which started it."""
    if event.how != LAUNCHED:
        phases = _pod_phases(event)
        begin = event.start_ns
    elif front is not None and front.exec_ns <= event.start_ns:
        phases = (*_pod_phases(front), (MPIEXEC, event.start_ns - front.exec_ns))
        begin = front.start_ns
    else:
        phases, begin = (), event.start_ns
    last = ((EXEC, event.exec_ns - event.entered_ns), (TOTAL, event.exec_ns - begin))
    return Start(event.origin.rank, event.origin.node, event.pid, (*phases, *last))


def _starts(events: list[RankEvent]) -> list[Start]:
    """The ranks' starts.  In a local launch the event that is no rank's is its mpiexec's."""
    launched = [event for event in events if event.how == LAUNCHED]
    fronts = [event for event in events if event.how != LAUNCHED]
    if not launched:
        return [_start_of(event, None) for event in events]
    return [_start_of(event, fronts[0] if fronts else None) for event in launched]


def _rank_table(starts: Iterable[Start]) -> tuple[PhaseFigures, ...]:
    samples: dict[str, list[Sample]] = {}
    for start in starts:
        for name, duration in start.phases:
            samples.setdefault(name, []).append(Sample(duration, start.node, start.rank))
    return tuple(_figures(name, samples[name]) for name in RANK_ORDER if name in samples)


def _prepare_table(events: Iterable[PrepareEvent]) -> tuple[PhaseFigures, ...]:
    samples: dict[str, list[Sample]] = {}
    for event in events:
        for phase in event.phases:
            samples.setdefault(phase.name, []).append(
                Sample(phase.end_ns - phase.start_ns, event.origin.node, None)
            )
    known = [name for name in PREPARE_ORDER if name in samples]
    return tuple(_figures(name, samples[name]) for name in (*known, *sorted(set(samples) - set(known))))


def _report(ranks: list[RankEvent], prepares: list[PrepareEvent]) -> Report:
    origins: list[Origin] = [event.origin for event in ranks]
    origins += [event.origin for event in prepares]
    first = origins[0]
    starts = _starts(ranks)
    return Report(
        launcher=first.launcher,
        job=first.job,
        step=first.step,
        scope=first.scope,
        images=tuple(sorted({origin.image for origin in origins})),
        digests=tuple(sorted({event.digest for event in prepares if event.digest})),
        nodes=tuple(sorted({origin.node for origin in origins})),
        ranks=len({start.rank for start in starts}),
        starts=len(starts),
        first_start_ns=min(event.start_ns for event in ranks),
        last_exec_ns=max(event.exec_ns for event in ranks),
        prepare=_prepare_table(prepares),
        rank=_rank_table(starts),
        slowest=max(starts, key=lambda start: (start.total_ns, start.node, start.rank, start.pid)),
    )


def merge(events: Iterable[Event]) -> tuple[Report, ...]:
    """A report for each scope in which a rank started, the earliest first.

    The order of the events does not matter, and an event that is given twice (a file read twice) counts
    once.  Scopes in which nothing but a preparation happened have no report.
    """
    ranks: dict[str, set[RankEvent]] = {}
    prepares: dict[str, set[PrepareEvent]] = {}
    for event in events:
        if isinstance(event, RankEvent):
            ranks.setdefault(event.origin.scope, set()).add(event)
        else:
            prepares.setdefault(event.origin.scope, set()).add(event)
    reports = (
        _report(sorted(found, key=_rank_key), sorted(prepares.get(scope, ()), key=_prepare_key))
        for scope, found in ranks.items()
    )
    return tuple(sorted(reports, key=lambda report: (report.first_start_ns, report.scope)))


def _rank_key(event: RankEvent) -> tuple[int, str, int, int, str]:
    return event.start_ns, event.origin.node, event.origin.rank, event.pid, repr(event)


def _prepare_key(event: PrepareEvent) -> tuple[str, str]:
    return event.origin.node, repr(event)
