# SPDX-License-Identifier: Apache-2.0
"""Events as the tests of the report need them."""

from __future__ import annotations

import json
from typing import Any

MS = 1_000_000


def rank_line(
    rank: int = 0, node: str = "n0", how: str = "found", start: int = 1000 * MS, **other: Any
) -> str:
    """A rank's line; steps of 1, 2 and 3 ms after its start."""
    return json.dumps(
        {
            "v": 1,
            "event": "rank",
            "launcher": "slurm",
            "job": "12",
            "step": "0",
            "scope": "slurm-12.0",
            "node": node,
            "rank": rank,
            "image": "oci:/images/demo",
            "local_rank": rank % 2,
            "pid": 100 + rank,
            "how": how,
            "start_ns": start,
            "found_ns": start + 1 * MS,
            "entered_ns": start + 3 * MS,
            "exec_ns": start + 6 * MS,
            **other,
        }
    )


def prepare_line(node: str = "n0", **milliseconds: int) -> str:
    """A preparation's line with these phases, one after the other."""
    at, phases = 1000 * MS, []
    for name, duration in (milliseconds or {"resolve": 2, "unpack": 300, "plan": 5}).items():
        phases.append({"name": name, "start_ns": at, "end_ns": at + duration * MS})
        at += duration * MS
    head = json.loads(rank_line(0, node))
    kept = {key: head[key] for key in ("v", "launcher", "job", "step", "scope", "node", "rank", "image")}
    return json.dumps({**kept, "event": "prepare", "digest": "sha256:" + "ab" * 32, "phases": phases})
