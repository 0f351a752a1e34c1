# SPDX-License-Identifier: Apache-2.0
"""``hpcpod doctor``: whether this node can hold pods, and what mends it where not."""

from __future__ import annotations

import json
import os

import click

from hpcpod.launcher.doctor import Level, findings
from hpcpod.launcher.node_facts import read_node

FAILED = 1
"""Exit status: something is wrong that keeps pods from starting."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what this node has and lacks for pods.

    Looks at kernel, namespaces, directories and Slurm.  Run it as the user, on the node, and
    within a job where the ranks run.
    """
    found = findings(read_node(os.environ, os.getuid()))
    if as_json:
        rows = [
            {"subject": f.subject, "level": f.level.value, "message": f.message, "mend": f.mend}
            for f in found
        ]
        click.echo(json.dumps({"v": 1, "findings": rows}, indent=1))
    else:
        width = max(len(finding.subject) for finding in found)
        for finding in found:
            click.echo(f"{finding.level.value:<4}  {finding.subject:<{width}}  {finding.message}")
            if finding.mend:
                click.echo(f"{'':<{width + 8}}mend: {finding.mend}")
    if any(finding.level is Level.FAIL for finding in found):
        context.exit(FAILED)
