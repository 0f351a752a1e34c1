# SPDX-License-Identifier: Apache-2.0
"""``hpcpod gc``: sweep what killed commands left on this node."""

from __future__ import annotations

import os

import click

from hpcpod import config
from hpcpod.images.stores import store
from hpcpod.images.stores.destination import sweep_announced
from hpcpod.launcher.sweep import sweep
from hpcpod.log import counted


@click.command(short_help="Remove what killed commands left on this node.")
def gc() -> None:
    """Remove what killed commands of yours left on this node.

    That is pods, half-made images, old events and plans.

    Never touches a pod that lives, nor an image that is whole.
    """
    uid = os.getuid()
    removed = sweep(config.runtime_directory(os.environ, uid))
    removed += sweep_announced(f"{config.runtime_directory(os.environ, uid)}/unpacking")
    removed += store.sweep(config.store_directory(os.environ, uid))
    click.echo(f"removed {counted(removed, 'leftover')}" if removed else "nothing to remove")
