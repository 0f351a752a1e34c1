# SPDX-License-Identifier: Apache-2.0
"""gpg's status lines: whatever it writes, good is one signature of which it says so, and nothing else."""

from __future__ import annotations

from hpcpod.images.trust.gpgstatus import parse_status
from tests.fuzz.target import Broken, Target
from tests.unit.trust.test_gpgstatus import BAD, GOOD, PRIMARY, status

PREFIX = b"[GNUPG:] "


def run(data: bytes) -> None:
    """Parse it; what is good must have these lines."""
    found = parse_status(data, ("00",))
    if not found.found.isprintable() or len(found.found) > 1000:
        raise Broken(f"a message that cannot be shown: {found.found!r}")
    if not found.good:
        return
    words = [line[len(PREFIX) :].split(b" ") for line in data.split(b"\n") if line.startswith(PREFIX)]
    good = [row for row in words if row[0].endswith(b"SIG") and row[0] not in (b"NEWSIG", b"VALIDSIG")]
    valid = [row for row in words if row[0] == b"VALIDSIG"]
    if [row[0] for row in good] != [b"GOODSIG"] or len(valid) != 1:
        raise Broken(f"good by {good} and {valid}")
    if valid[0][1].decode() != found.signer or valid[0][10].decode() != found.fingerprint:
        raise Broken(f"{found} by {valid}")
    if valid[0][8] not in (b"8", b"9", b"10", b"11") or valid[0][9] != b"00" or found.until < 0:
        raise Broken(f"{found} by {valid}")


TARGET = Target(
    run=run,
    seeds={"good": status(*GOOD), **{name: status(*lines) for name, lines in BAD.items()}},
    words=(b"[GNUPG:] ", b"GOODSIG ", b"VALIDSIG ", b"\n", PRIMARY.encode(), b"EXPSIG ", b" 22 8 00 "),
    runs=10_000,
)
