# SPDX-License-Identifier: Apache-2.0
"""``hpcpod run`` as Python sees it (help, and what the C front could not read), and ``hpcpod plan``."""

from __future__ import annotations

import json
import os
from enum import Enum
from typing import get_args

import click

from hpcpod.errors import UsageError
from hpcpod.launcher.options import RUN_OPTIONS
from hpcpod.launcher.request import parse_request
from hpcpod.log import shown
from hpcpod.model import EnvOp, Mount, NodePlan
from hpcpod.scheduler_plugins import recognise

_OPERATIONS = (*get_args(Mount), *get_args(EnvOp))
_RAW = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": ["-h", "--help"],
}


def _documented(command: click.Command) -> None:
    """Put the option table into the command's help.  The words are read by launcher.request, not by click."""
    for option in RUN_OPTIONS:
        names = [f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
        command.params.append(
            click.Option(
                names,
                is_flag=not option.metavar,
                metavar=option.metavar or None,
                multiple=option.multiple,
                help=option.help,
                expose_value=False,
            )
        )


def _explain(words: tuple[str, ...]) -> None:
    """Raise the UsageError that says why the front could not carry out `run` with these words."""
    _, rest = parse_request(words, os.environ)
    if not rest or rest[0] in ("", "--"):
        raise UsageError("run: no image given", hint="hpcpod run [OPTIONS] IMAGE [--] PROGRAM [ARGUMENTS]")
    if len(rest) > 1 and rest[1].startswith("-") and rest[1] != "--":
        raise UsageError(
            f"run: {rest[1]} after the image",
            hint="options go before the image; a program that begins with - goes after --",
        )
    raise UsageError("run: started without the front", hint="run the installed command hpcpod, not python -m")


class _RunCommand(click.Command):
    """Help by click; everything else by the one parser that knows the table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] in (["--help"], ["-h"]):
            return super().parse_args(ctx, args)
        ctx.params["words"] = tuple(args)
        return []


@click.command(cls=_RunCommand, context_settings=_RAW)
@click.argument("words", nargs=-1, metavar="IMAGE [--] PROGRAM [ARGUMENTS]...")
def run(words: tuple[str, ...]) -> None:
    """Run PROGRAM in the pod of IMAGE: as a rank of the scheduler's step, or alone."""
    _explain(words)


def _plain(value: object) -> object:
    """A plan as JSON knows it: enums by value, sets sorted, bytes as hexadecimal."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, frozenset):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__match_args__"):
        fields = {name: _plain(item) for name, item in vars(value).items()}
        return {"op": type(value).__name__, **fields} if type(value) in _OPERATIONS else fields
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _show(plan: NodePlan) -> None:
    click.echo(f"image    {shown(plan.image.reference)}")
    click.echo(f"digest   {plan.image.digest}")
    click.echo(f"rootfs   {shown(plan.image.rootfs)}")
    writable = "read-only" if plan.pod.writable is None else f"writable layer of {plan.pod.writable} bytes"
    click.echo(f"root     {writable}")
    for mount in plan.pod.mounts:
        fields = " ".join(
            f"{key}={shown(str(item))}"
            for key, item in vars(mount).items()
            if key != "content" and item not in (False, 0)
        )
        click.echo(f"mount    {type(mount).__name__} {fields}")
    for op in plan.rank.environment:
        click.echo(f"env      {type(op).__name__} {shown('='.join(map(str, vars(op).values())))}")
    click.echo(f"workdir  {' then '.join(shown(path) for path in plan.rank.workdirs)}")
    click.echo(f"command  {' '.join(map(shown, (*plan.rank.launch, '…', *plan.rank.command)))}")
    click.echo(f"seccomp  {len(plan.rank.seccomp) // 8} instructions")
    accepted = plan.rank.accepted
    kinds = "no check" if accepted is None else " ".join(sorted(kind.value for kind in accepted))
    click.echo(f"mpi      {kinds}")


@click.command(cls=_RunCommand, context_settings=_RAW)
@click.argument("words", nargs=-1, metavar="IMAGE")
def plan(words: tuple[str, ...]) -> None:
    """Show what `hpcpod run` with these words would do here, and do nothing but bring the image in.

    --json prints it for scripts.
    """
    from hpcpod.launcher.prepare import plan_node

    as_json = words[:1] == ("--json",)
    request, rest = parse_request(words[1:] if as_json else words, os.environ)
    if not rest:
        raise UsageError("plan: no image given", hint="hpcpod plan [OPTIONS] IMAGE")
    context = recognise(os.environ, cwd=os.getcwd(), node=os.uname().nodename)
    node_plan, _ = plan_node(request, rest[0], os.environ, context)
    if as_json:
        click.echo(json.dumps(_plain(node_plan), indent=2))
    else:
        _show(node_plan)


_documented(run)
_documented(plan)
