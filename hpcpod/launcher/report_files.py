# SPDX-License-Identifier: Apache-2.0
"""Finding and reading files of start-up events."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping

from hpcpod.config import runtime_directory
from hpcpod.errors import ReportEmpty, UsageError
from hpcpod.frozen import frozen
from hpcpod.launcher.events import Event, EventMalformed, directory, parse_line
from hpcpod.log import shown

SUFFIX = ".jsonl"
SCOPES = 8
"""Scopes that a hint names."""
LOCAL = ("local.old.jsonl", "local.jsonl")
"""Runs outside a scheduler share these two files (native/events.c)."""


@frozen
class Line:
    """One line of a file, without its end.  where: FILE:NUMBER."""

    where: str
    text: str
    event: Event | None
    why: str
    """Why there is no event."""


def read_lines(path: str) -> list[Line]:
    """The lines of a file, or of standard input for ``-``; empty lines are left out.  Raises UsageError."""
    name = "standard input" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                data = file.read()
    except OSError as error:
        raise UsageError(f"events {shown(name)}: {error.strerror}") from error
    lines = enumerate(data.decode("utf-8", "replace").split("\n"), 1)
    return [_line(f"{name}:{number}", text) for number, text in lines if text.strip()]


def _line(where: str, text: str) -> Line:
    try:
        return Line(where, text, parse_line(text), "")
    except EventMalformed as error:
        return Line(where, text, None, str(error))


def _files(folder: str) -> list[str]:
    """Files of events in a directory, the oldest first.  Raises UsageError."""
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(SUFFIX)]
        return sorted(paths, key=lambda path: (os.stat(path).st_mtime_ns, path))
    except OSError as error:
        raise UsageError(f"events {shown(folder)}: {error.strerror}") from error


def _is_job(word: str) -> bool:
    """Whether the word is JOB or JOB.STEP: 12, 12.0, 12.batch."""
    job, _, step = word.partition(".")
    return job.isascii() and job.isdigit() and (not step or step.isalnum()) and not word.endswith(".")


def _matches(scope: str, word: str) -> bool:
    """Whether the scope is the one that the word names: its name, its JOB or its JOB.STEP."""
    if _is_job(word):
        return scope == f"slurm-{word}" or ("." not in word and scope.startswith(f"slurm-{word}."))
    return scope == word


def _of_scopes(lines: Iterable[Line], word: str) -> list[Line]:
    return [line for line in lines if line.event is None or _matches(line.event.origin.scope, word)]


def _named(folder: str, word: str) -> list[Line]:
    """This node's lines for a scope or a job.  Raises ReportEmpty."""
    found: list[Line] = []
    for path in _files(folder) if os.path.isdir(folder) else []:
        name = os.path.basename(path)
        if name in LOCAL or _matches(name.removesuffix(SUFFIX), word):
            lines = _of_scopes(read_lines(path), word)
            found += lines if any(line.event for line in lines) else []
    if not found:
        raise ReportEmpty(f"start-up events of {shown(word)}: none in {folder}", hint=_what_there_is(folder))
    return found


def _what_there_is(folder: str) -> str:
    """The scopes of this node that a report can be of, the latest first."""
    paths = reversed(_files(folder) if os.path.isdir(folder) else [])
    events = (line.event for path in paths for line in reversed(read_lines(path)))
    scopes = list(dict.fromkeys(event.origin.scope for event in events if event is not None))
    stay = "events stay on the nodes where the ranks ran: run `hpcpod report` there, as the same user"
    if not scopes:
        return stay
    more = f" and {len(scopes) - SCOPES} more" if len(scopes) > SCOPES else ""
    return f"here are {', '.join(map(shown, scopes[:SCOPES]))}{more}; {stay}"


def _latest(folder: str) -> list[Line]:
    """This node's lines for the scope with the latest start.  Raises ReportEmpty."""
    for path in reversed(_files(folder) if os.path.isdir(folder) else []):
        lines = read_lines(path)
        scopes = [line.event.origin.scope for line in lines if line.event is not None]
        if scopes:
            return _of_scopes(lines, scopes[-1])
    raise ReportEmpty(
        f"start-up events: none in {folder}",
        hint="`hpcpod run` writes them, on the node where it runs; after a reboot they are gone",
    )


def gather(words: tuple[str, ...], environment: Mapping[str, str], uid: int) -> Iterator[Line]:
    """All lines that the words name; none means the latest scope of this node.

    A word is ``-``, a job (12), a step (12.0), a file, a directory of files, or a scope.  Raises UsageError,
    ReportEmpty, StoreUnusable.
    """
    if not words:
        yield from _latest(directory(runtime_directory(environment, uid)))
    for word in words:
        if word == "-" or (not _is_job(word) and os.path.isfile(word)):
            yield from read_lines(word)
        elif not _is_job(word) and os.path.isdir(word):
            for path in _files(word):
                yield from read_lines(path)
        elif "/" in word:
            raise UsageError(f"events {shown(word)}: no such file or directory")
        else:
            yield from _named(directory(runtime_directory(environment, uid)), word)
