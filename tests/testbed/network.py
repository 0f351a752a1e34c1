# SPDX-License-Identifier: Apache-2.0
"""The network between the nodes: a bridge in the namespace of ``ctl``, a pair of veths to each node.

The machine's own network namespace gets no interface.  A program of its own
(``python -m tests.testbed.network``): the import of pyroute2 then overlaps with the start of the nodes,
and its sockets and threads stay out of the test runner.
"""

from __future__ import annotations

import json
import os
import sys

CONTROLLER_ADDRESS = "10.77.0.1"
PREFIX = 24


def address(index: int) -> str:
    """Address of the index-th compute node."""
    return f"10.77.0.{10 + index}"


def wire(controller: int, nodes: list[tuple[str, int]]) -> None:
    """Join the network namespaces of these processes: the controller's, and (name, pid) of each node."""
    from pyroute2 import NetNS

    with NetNS(f"/proc/{controller}/ns/net") as switch:
        switch.link("add", ifname="br0", kind="bridge")
        bridge = switch.link_lookup(ifname="br0")[0]
        switch.link("set", index=bridge, state="up")
        switch.addr("add", index=bridge, address=CONTROLLER_ADDRESS, prefixlen=PREFIX)
        switch.link("set", index=switch.link_lookup(ifname="lo")[0], state="up")
        for index, (name, pid) in enumerate(nodes):
            # A descriptor, not net_ns_pid: that is resolved in the pid namespace of the sender.
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            switch.link(
                "add", ifname=f"v-{name}", kind="veth", peer={"ifname": "eth0", "net_ns_fd": descriptor}
            )
            os.close(descriptor)
            switch.link("set", index=switch.link_lookup(ifname=f"v-{name}")[0], master=bridge, state="up")
            with NetNS(f"/proc/{pid}/ns/net") as inside:
                ethernet = inside.link_lookup(ifname="eth0")[0]
                inside.addr("add", index=ethernet, address=address(index), prefixlen=PREFIX)
                inside.link("set", index=ethernet, state="up")
                inside.link("set", index=inside.link_lookup(ifname="lo")[0], state="up")


def main() -> int:
    """Read ``{"controller": PID, "nodes": [[NAME, PID], ...]}`` from stdin and wire them."""
    import pyroute2  # noqa: F401 - before the read: this is the time to overlap

    request = json.load(sys.stdin)
    wire(request["controller"], [(name, pid) for name, pid in request["nodes"]])
    return 0


if __name__ == "__main__":
    sys.exit(main())
