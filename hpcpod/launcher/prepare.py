# SPDX-License-Identifier: Apache-2.0
"""What the C front runs when there is no plan: resolve, verify, unpack, plan, and write the sealed record.

``python3 -I -m hpcpod.launcher.prepare RECORD SCOPE OPTIONS… REFERENCE``, under the front's lock.  Ranks of
the node wait for it, so nothing is imported here that the shortest way (image in the store) does not need.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Mapping, Sequence

from hpcpod import config, settings
from hpcpod.errors import StoreFull, StoreUnusable, UsageError, as_hpcpod_error
from hpcpod.frozen import replace
from hpcpod.images.limits import configured
from hpcpod.images.sources.platforms import parse_platform
from hpcpod.images.stores.ensure import Present, ensure
from hpcpod.images.stores.forms import parse_form
from hpcpod.isolation import seccomp
from hpcpod.launcher import events, facts, signals, sweep
from hpcpod.launcher.plan import Facts, make_plan
from hpcpod.launcher.record import record_bytes, rootfs_path
from hpcpod.launcher.request import RunRequest, parse_request
from hpcpod.log import StderrProgress, shown
from hpcpod.model import NodePlan, Phase, Pull, StepContext
from hpcpod.scheduler_plugins import recognise


def plan_node(
    request: RunRequest, reference: str, environment: Mapping[str, str], context: StepContext
) -> tuple[NodePlan, tuple[Phase, ...]]:
    """Bring the image into the store and plan this request.  Raises HpcpodError."""
    uid = os.getuid()
    if request.ntasks is not None and context.ntasks > 1:
        raise UsageError(
            f"option --ntasks {request.ntasks}: this is rank {context.rank} of a step of {context.ntasks}",
            hint="the scheduler starts the ranks: srun -n N hpcpod run …",
        )
    runtime = config.runtime_directory(environment, uid)
    progress = StderrProgress()
    found = _image(request, reference, environment, progress)
    if request.debug:
        _tell(progress, found.phases)
    start = time.time_ns()
    known = Facts(
        user=facts.user_facts(environment),
        inside=found.image.inside,
        context=context,
        paths=facts.node_paths(runtime, context),
        guards=found.guards,
        seccomp=seccomp.default_filter(runtime) if request.seccomp else b"",
    )
    plan = make_plan(request, found.image, known)
    plan = replace(plan, until=found.until, fresh_ns=time.time_ns() if found.fresh else 0)
    planned = Phase("plan", start, time.time_ns())
    if request.debug:
        _tell(progress, (planned,))
    return plan, (*found.phases, planned)


def _image(
    request: RunRequest, reference: str, environment: Mapping[str, str], progress: StderrProgress
) -> Present:
    """The image in a store, as the request wants it."""
    site = settings.read_settings(environment)
    return ensure(
        reference,
        environment=environment,
        uid=os.getuid(),
        platform=parse_platform(request.platform) if request.platform else None,
        limits=configured(site),
        progress=progress,
        settings=site,
        form=parse_form(request.rootfs, "option --rootfs"),
        pull=Pull(request.pull),
        insecure=request.insecure,
    )


def _tell(progress: StderrProgress, phases: Sequence[Phase]) -> None:
    """What --debug shows: a line for each phase."""
    for phase in phases:
        progress.note(f"{phase.name} {(phase.end_ns - phase.start_ns) / 1e6:.1f} ms")


def write_record(path: str, content: bytes) -> None:
    """Put the record where the front looks, whole or not at all.  Raises StoreUnusable, StoreFull."""
    temporary = f"{path}.{os.getpid()}"
    try:
        _write(temporary, content)
        os.rename(temporary, path)
    except OSError as error:
        _remove(temporary)
        kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreUnusable
        raise kind(f"plan {path}: {error.strerror}", hint="HPCPOD_RUNTIME names another directory") from error
    except BaseException:  # a signal's
        _remove(temporary)
        raise


def _write(path: str, content: bytes) -> None:
    # Not exclusively: a killed process that had the same pid may have left one.
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
        file.write(content)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # not made yet, or the directory is what failed: that is what the caller raises
        return


def prepare(record: str, scope: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Make the record for these words.  Raises HpcpodError."""
    request, rest = parse_request(words, environment)
    context = recognise(environment, cwd=_working_directory(), node=os.uname().nodename)
    plan, phases = plan_node(request, rest[0], environment, context)
    write_record(record, record_bytes(plan, facts.stamp(rootfs_path(plan.image.rootfs))))
    if request.debug:
        StderrProgress().note(f"record {shown(record)}")
    runtime = config.runtime_directory(environment, os.getuid())
    events.append_prepare(runtime, scope, context, plan.image, phases)
    sweep.sweep(runtime)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # deleted, or above a directory that is closed to us: then it is not bound
        return "/"


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0, or what the error says; the error's lines go to stderr.

    A signal ends it as a signal does, after clearing up: to the front, which waits, that says nothing about
    the next attempt, as an exit status would.
    """
    signals.clear_up_on_signals()
    try:
        prepare(arguments[0], arguments[1], arguments[2:], os.environ)
    except signals.Stopped as stop:
        signals.end_by(stop.number)
        return 128 + stop.number
    except Exception as error:
        if "--debug" in arguments:
            import traceback  # not on the way of a preparation that goes well

            traceback.print_exception(error)
        known = as_hpcpod_error(error)
        sys.stderr.write(known.lines())
        return known.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
