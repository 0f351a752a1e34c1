# SPDX-License-Identifier: Apache-2.0
"""``hpcpod report``: how long each phase of a start took."""

from __future__ import annotations

import json
import os
import sys

import click

from hpcpod.errors import ReportEmpty
from hpcpod.launcher.report import merge
from hpcpod.launcher.report_files import Line, gather
from hpcpod.launcher.report_table import data, table
from hpcpod.log import shown

NAMED = 5
"""Malformed lines that are named one by one."""


@click.command(short_help="Show how long each phase of a start took.")
@click.option("--json", "as_json", is_flag=True, help="Print figures as JSON, in nanoseconds.")
@click.option("--raw", is_flag=True, help="Print the events themselves, for `hpcpod report -` elsewhere.")
@click.argument("events", nargs=-1, metavar="[JOB[.STEP]|SCOPE|FILE|DIRECTORY|-]...")
def report(as_json: bool, raw: bool, events: tuple[str, ...]) -> None:
    """Show how long each phase of a start took, and the slowest rank.

    Without an argument: the latest start on this node.  SCOPE is the name of a set of ranks that started
    together: slurm-JOB.STEP, mpiexec-PID, or local-TIME-PID of a run without a scheduler.

    Events stay on the node where a rank ran; to merge those of all nodes, at the end of the job's script:

        srun -n "$SLURM_NNODES" --ntasks-per-node=1 hpcpod report --raw JOB.0 | hpcpod report -
    """
    lines = list(gather(events, os.environ, os.getuid()))
    if raw:
        for line in lines:
            click.echo(line.text)
        return
    reports = merge(line.event for line in lines if line.event is not None)
    malformed = [line for line in lines if line.event is None]
    if as_json:
        pairs = [(line.where, line.why) for line in malformed]
        click.echo(json.dumps(data(reports, pairs), indent=1))
    else:
        symbol = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
        click.echo("\n\n".join(table(found, symbol=symbol) for found in reports), nl=bool(reports))
    _warn(malformed)
    if not reports:
        raise ReportEmpty(
            f"start-up events: no rank started in what was given ({len(lines)} lines)",
            hint="a rank writes its line just before its program starts",
        )


def _warn(malformed: list[Line]) -> None:
    for line in malformed[:NAMED]:
        click.echo(f"hpcpod: {shown(line.where)}: passed over: {shown(line.why)}", err=True)
    if len(malformed) > NAMED:
        click.echo(f"hpcpod: {len(malformed)} lines passed over in all", err=True)
