# SPDX-License-Identifier: Apache-2.0
"""Start-up events: one line of JSON per rank, and per preparation, in node-local memory.

docs/reference/events.md describes the lines.  native/events.c writes those of the ranks; this module writes
the preparing process's and reads both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from hpcpod.frozen import frozen
from hpcpod.model import Phase, StepContext, VerifiedImage

VERSION = 1
HOWS = ("found", "waited", "created", "prepared", "launched")
"""How a rank came by its pod: found it ready; waited for another rank; created it from a plan at hand;
prepared it from the image; was started inside it by the image's mpiexec."""
MAX_TEXT = 4096
MAX_NS = 1 << 63


class EventMalformed(ValueError):
    """A line that is no event of this version; says why."""


@frozen
class Origin:
    """What all events of one start share.  launcher: ``slurm`` or ``local``; image: as the user wrote it."""

    launcher: str
    job: str
    step: str
    scope: str
    node: str
    rank: int
    image: str


@frozen
class RankEvent:
    """A rank's start, in CLOCK_REALTIME nanoseconds.

    start: main() of the front; found: pod or plan in hand; entered: namespaces joined; exec: just before
    the program.
    """

    origin: Origin
    local_rank: int
    pid: int
    how: str
    start_ns: int
    found_ns: int
    entered_ns: int
    exec_ns: int


@frozen
class PrepareEvent:
    """Phases of a preparation that one process of the node did for all.  digest: empty where not known."""

    origin: Origin
    digest: str
    phases: tuple[Phase, ...]


Event = RankEvent | PrepareEvent


def directory(runtime: str) -> str:
    """Where a node keeps the events, in its run-time directory."""
    return os.path.join(runtime, "events")


def append_prepare(
    runtime: str, scope: str, context: StepContext, image: VerifiedImage, phases: tuple[Phase, ...]
) -> None:
    """Append the line of a preparation to the scope's file; one write, so that lines never mix.

    A node without space for it still starts its ranks: failures of the file system are not reported.
    """
    line = {
        "v": VERSION,
        "event": "prepare",
        "launcher": context.launcher,
        "job": context.job_id,
        "step": context.step_id,
        "scope": scope,
        "node": context.node,
        "rank": context.rank,
        "image": image.reference,
        "digest": image.digest,
        "phases": [{"name": p.name, "start_ns": p.start_ns, "end_ns": p.end_ns} for p in phases],
    }
    name = "local" if context.launcher == "local" else scope
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.makedirs(directory(runtime), mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(directory(runtime), f"{name}.jsonl"), flags, 0o600)
    except OSError:  # see above
        return
    try:
        os.write(fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")
    except OSError:  # see above
        return
    finally:
        os.close(fd)


# --------------------------------------------------------------------------- reading


def parse_line(text: str) -> Event:
    """The event that one line holds.  Raises EventMalformed."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise EventMalformed("no JSON") from None
    if not isinstance(fields, dict):
        raise EventMalformed("no JSON object")
    if fields.get("v") != VERSION:
        raise EventMalformed(f"version {_brief(fields.get('v'))}, expected {VERSION}")
    if fields.get("event") == "rank":
        return _rank_event(fields)
    if fields.get("event") == "prepare":
        return _prepare_event(fields)
    raise EventMalformed(f"event {_brief(fields.get('event'))}, expected rank or prepare")


def _brief(value: object) -> str:
    return ascii(value)[:40]


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise EventMalformed(f"{name} {_brief(value)}, expected text")
    return value


def _number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_NS:
        raise EventMalformed(f"{name} {_brief(value)}, expected a number")
    return value


def _origin(fields: Mapping[str, object]) -> Origin:
    texts = {name: _text(fields, name) for name in ("launcher", "job", "step", "scope", "node", "image")}
    return Origin(**texts, rank=_number(fields, "rank"))


def _rank_event(fields: Mapping[str, object]) -> RankEvent:
    how = _text(fields, "how")
    if how not in HOWS:
        raise EventMalformed(f"how {_brief(how)}, expected one of {', '.join(HOWS)}")
    event = RankEvent(
        origin=_origin(fields),
        local_rank=_number(fields, "local_rank"),
        pid=_number(fields, "pid"),
        how=how,
        start_ns=_number(fields, "start_ns"),
        found_ns=_number(fields, "found_ns"),
        entered_ns=_number(fields, "entered_ns"),
        exec_ns=_number(fields, "exec_ns"),
    )
    if not event.start_ns <= event.found_ns <= event.entered_ns <= event.exec_ns:
        raise EventMalformed("times run backwards: the node's clock was set meanwhile")
    return event


def _prepare_event(fields: Mapping[str, object]) -> PrepareEvent:
    listed = fields.get("phases")
    if not isinstance(listed, list):
        raise EventMalformed(f"phases {_brief(listed)}, expected a list")
    phases: list[Phase] = []
    for entry in listed:
        if not isinstance(entry, dict):
            raise EventMalformed(f"phase {_brief(entry)}, expected an object")
        phase = Phase(_text(entry, "name"), _number(entry, "start_ns"), _number(entry, "end_ns"))
        if phase.start_ns > phase.end_ns:
            raise EventMalformed("times run backwards: the node's clock was set meanwhile")
        phases.append(phase)
    digest = _text(fields, "digest") if "digest" in fields else ""
    return PrepareEvent(_origin(fields), digest, tuple(phases))
