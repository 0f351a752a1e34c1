# SPDX-License-Identifier: Apache-2.0
"""What keeps a packed image what it was packed as, while it is used: chosen by facts.  Pure."""

from __future__ import annotations

from enum import Enum

from hpcpod.errors import ImageDigestMismatch
from hpcpod.frozen import frozen


class Guard(Enum):
    """Who compares what is read with what was packed.

    FS_VERITY and DM_VERITY: the kernel, each block at each reading from the disk; what is wrong is never
    given out (EIO).  COMPARED: this program, the whole file, before its first use since the boot.  NOTHING:
    nobody, unless somebody asks (hpcpod image verify).
    """

    FS_VERITY = "fs-verity"
    DM_VERITY = "dm-verity"
    COMPARED = "compared"
    NOTHING = "nothing"


MEANING = {
    Guard.FS_VERITY: "the file system checks each block when it is read",
    Guard.DM_VERITY: "the block device checks each block when it is read",
    Guard.COMPARED: "its file is compared before the first use since the boot",
    Guard.NOTHING: "only image verify compares its files",
}


@frozen
class GuardFacts:
    """What the choice depends on.

    name: of the entry.  measured: the digest that fs-verity checks the file against, empty where it does not;
    expected: what that must be, empty where no Merkle root is known.  mounts: root mounts the image in the
    kernel.  dm_verity: why it cannot be a dm-verity device, empty where it can.
    """

    name: str
    measured: str
    expected: str
    mounts: bool
    dm_verity: str


def choose_guard(facts: GuardFacts, hint: str) -> tuple[Guard, str]:
    """The strongest guard, and where it is the weakest, why.

    fs-verity first: it needs no device, and EROFS is mounted from the file itself.  Raises
    ImageDigestMismatch, with this hint, where the kernel checks the file against another digest.
    """
    if facts.measured and facts.expected:
        if facts.measured != facts.expected:
            raise ImageDigestMismatch(
                f"image {facts.name}: its file has fs-verity digest {facts.measured}, "
                f"expected {facts.expected}",
                hint=hint,
            )
        return Guard.FS_VERITY, ""
    if not facts.expected:
        return Guard.COMPARED, "packed before there were Merkle roots"
    if facts.mounts:
        return (Guard.COMPARED, facts.dm_verity) if facts.dm_verity else (Guard.DM_VERITY, "")
    return Guard.COMPARED, "the store's file system has no fs-verity"
