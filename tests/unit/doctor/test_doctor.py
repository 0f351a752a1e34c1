# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of nodes that lack something, from the facts that such nodes give."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcpod.frozen import replace
from hpcpod.launcher.doctor import Finding, Level, NodeFacts, Packing, Place, SiteFacts, findings
from hpcpod.launcher.node_facts import has_threads, parse_mpi_list, read_sysctls

GOOD = NodeFacts(
    release="6.1.0-13-amd64",
    sysctl={
        "user/max_user_namespaces": "31500",
        "kernel/seccomp/actions_avail": "kill_process kill_thread trap errno user_notif trace log allow",
    },
    userns="",
    overlay="",
    store=Place("/var/tmp/hpcpod-1", kind="ext4", options=frozenset({"rw"}), free=10**11),
    runtime=Place("/dev/shm/hpcpod-1", kind="tmpfs"),
    pmi=frozenset({"none", "pmi2", "pmix", "pmix_v4"}),
    packing=Packing(
        filesystems=frozenset({"erofs", "squashfs"}),
        programs=frozenset({"mkfs.erofs", "mksquashfs", "squashfuse_ll"}),
        threads=True,
    ),
    site=SiteFacts("/var/lib/hpcpod", images=3, mounted=1),
)
PACKING = GOOD.packing


def without(program: str) -> Packing:
    return replace(PACKING, programs=PACKING.programs - {program})


def finding(facts: NodeFacts, subject: str) -> Finding:
    return next(
        found for found in findings(facts) if found.subject == subject and found.level is not Level.OK
    )


def test_a_good_node_has_nothing_to_mend() -> None:
    assert {found.level for found in findings(GOOD)} == {Level.OK}
    assert not any(found.mend for found in findings(GOOD))


@pytest.mark.parametrize(
    ("sysctl", "value", "mend"),
    [
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=65536"),
        ("user/max_mnt_namespaces", "0", "sysctl -w user.max_mnt_namespaces=65536"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
        ("user/max_user_namespaces", "31500", "ask"),
    ],
)
def test_why_there_are_no_user_namespaces(sysctl: str, value: str, mend: str) -> None:
    facts = replace(GOOD, userns="EPERM", sysctl={**GOOD.sysctl, sysctl: value})
    found = finding(facts, "user namespaces")
    assert found.level is Level.FAIL
    assert "EPERM" in found.message
    assert mend in found.mend
    assert finding(facts, "overlay").level is Level.WARN


@pytest.mark.parametrize(
    ("facts", "subject", "level"),
    [
        (replace(GOOD, release="4.18.0-513.el8.x86_64"), "kernel", Level.FAIL),
        (replace(GOOD, release="5.14.0-362.el9.x86_64"), "kernel", None),
        (replace(GOOD, release="custom"), "kernel", Level.WARN),
        (replace(GOOD, overlay="ENODEV"), "overlay", Level.WARN),
        (replace(GOOD, sysctl={}), "seccomp", Level.FAIL),
        (
            replace(GOOD, runtime=Place("", problem="run-time directory /x: no")),
            "run-time directory",
            Level.FAIL,
        ),
        (replace(GOOD, runtime=Place("/scratch/x", kind="ext4")), "run-time directory", Level.WARN),
        (replace(GOOD, store=Place("", problem="image store /x: no")), "image store", Level.FAIL),
        (replace(GOOD, store=replace(GOOD.store, kind="lustre")), "image store", Level.WARN),
        (replace(GOOD, store=replace(GOOD.store, free=10**9)), "image store", Level.WARN),
        (replace(GOOD, store=replace(GOOD.store, options=frozenset({"noexec"}))), "image store", Level.FAIL),
        (replace(GOOD, pmi=frozenset({"none", "pmi2"})), "Slurm", Level.WARN),
        (replace(GOOD, pmi=None, pmi_problem="no controller"), "Slurm", Level.WARN),
        (replace(GOOD, pmi=None), "Slurm", None),
        (replace(GOOD, packing=replace(PACKING, filesystems=frozenset({"squashfs"}))), "erofs", Level.WARN),
        (replace(GOOD, packing=replace(PACKING, filesystems=frozenset({"erofs"}))), "squashfs", Level.WARN),
        (replace(GOOD, packing=without("mkfs.erofs")), "erofs", Level.WARN),
        (replace(GOOD, packing=without("mksquashfs")), "squashfs", Level.WARN),
        (replace(GOOD, packing=without("squashfuse_ll")), "FUSE", Level.WARN),
        (replace(GOOD, packing=replace(PACKING, threads=False)), "FUSE", Level.WARN),
        (replace(GOOD, packing=replace(PACKING, threads=None)), "FUSE", None),
        (replace(GOOD, packing=replace(PACKING, fuse="EACCES")), "FUSE", Level.WARN),
        (replace(GOOD, site=None), "site store", None),
        (replace(GOOD, site=SiteFacts("/x", "not there")), "site store", Level.WARN),
        (replace(GOOD, gpg=False), "signatures", Level.WARN),
        (replace(GOOD, settings_problem="configuration /x: not TOML"), "hpcpod.toml", Level.FAIL),
    ],
)
def test_what_is_wrong_is_found_and_can_be_mended(
    facts: NodeFacts, subject: str, level: Level | None
) -> None:
    wrong = [found for found in findings(facts) if found.level is not Level.OK]
    assert [(found.subject, found.level) for found in wrong] == ([(subject, level)] if level else [])
    nothing_to_mend = ("tells no version", "not needed for runs without Slurm")
    assert all(found.mend or found.message.endswith(nothing_to_mend) for found in wrong)


def test_settings_are_read_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    assert read_sysctls(str(tmp_path)) == {"user/max_user_namespaces": "0"}


NEW = """\
MPI plugin types are...
\tpmix
\tnone
\tcray_shasta
\tpmi2
specific pmix plugin versions available: pmix_v4
"""
OLD = "srun: MPI types are...\nsrun: none\nsrun: pmi2\n"


def test_the_list_of_srun() -> None:
    assert parse_mpi_list(NEW) == {"pmix", "none", "cray_shasta", "pmi2"}
    assert parse_mpi_list(OLD) == {"none", "pmi2"}


@pytest.mark.parametrize(
    ("content", "threads"),
    [(b"\x7fELF\0fuse_session_loop_mt_31\0", True), (b"\x7fELF\0fuse_session_loop\0", False), (b"#!", None)],
)
def test_threads_of_the_fuse_server(tmp_path: Path, content: bytes, threads: bool | None) -> None:
    (tmp_path / "server").write_bytes(content)
    assert has_threads(str(tmp_path / "server")) is threads
    assert has_threads(str(tmp_path / "none")) is None
