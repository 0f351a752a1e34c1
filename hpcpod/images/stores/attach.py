# SPDX-License-Identifier: Apache-2.0
"""A packed file as a mount of the kernel's, checked while it is read where the kernel can."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

from hpcpod.images.stores import devmapper, merkle
from hpcpod.images.stores.guards import Guard
from hpcpod.images.stores.store import TREE, StoredImage, content_name
from hpcpod.kernel import loop_device, mount_read_only
from hpcpod.model import Form


def no_verity(image: StoredImage, entry: str) -> str:
    """Why an image whose entry is at this path cannot be mounted by dm-verity here; empty where it can."""
    if not image.root:
        return "packed before there were Merkle roots"
    if merkle.tree_size(image.length) and not os.path.exists(f"{entry}/{TREE}"):
        return f"its hash blocks ({TREE}) are not there"
    return devmapper.obstacle()


def attach(image: StoredImage, guard: Guard, entry: str, file: int, directory: int) -> None:
    """Mount the packed file that is open as `file` on the directory that is open as `directory`.

    entry: directory of that file, in which nobody but root can exchange it; mount tables show its path
    (usage.py).  Raises OSError.
    """
    form = Form(image.form)
    if guard is Guard.DM_VERITY:
        _attach_verified(image, file, f"{entry}/{TREE}", directory)
        return
    if form is Form.EROFS:
        try:
            mount_read_only("erofs", f"{entry}/{content_name(form)}", directory)
        except OSError as error:
            if error.errno != errno.ENOTBLK:  # before Linux 6.12: only block devices
                raise
        else:
            return
    block, device = loop_device(file)
    try:
        mount_read_only(form.value, block, directory)
    finally:
        os.close(device)


def _attach_verified(image: StoredImage, file: int, tree: str, directory: int) -> None:
    """By a dm-verity device over loop devices; each goes with its last user.

    An image of one block has no hash blocks: the device is told a second one that it never reads.
    """
    with ExitStack() as opened:
        _, device = loop_device(file)
        opened.callback(os.close, device)
        second = device
        if merkle.tree_size(image.length):
            blocks = os.open(tree, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            opened.callback(os.close, blocks)
            _, second = loop_device(blocks)
            opened.callback(os.close, second)
        length, parameters = merkle.table(image.root, image.length, _number(device), _number(second))
        path, verity = devmapper.open_verity(image.name, length, parameters)
        opened.callback(os.close, verity)
        mount_read_only(image.form, path, directory)


def _number(device: int) -> str:
    number = os.fstat(device).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"
