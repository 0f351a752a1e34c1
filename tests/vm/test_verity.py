# SPDX-License-Identifier: Apache-2.0
"""dm-verity and fs-verity, on disks whose bits flip below the file system: no time and no size tells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.site.test_flips import REGIONS
from tests.testbed.guest import Done, Guest
from tests.vm.inside import environment

pytestmark = pytest.mark.needs("root", "qemu", "squashfs-tools", "loop")

REFERENCE = "oci:/run/layout"
FORMS = ("squashfs", "erofs")


class Node:
    """The guest with its two disks."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._entries: dict[tuple[str, str], str] = {}

    def do(self, function: str, *arguments: object) -> Any:
        return self.guest.call(f"tests.vm.inside:{function}", *arguments)

    def hpcpod(self, disk: str, *words: str, check: bool = True) -> Done:
        return self.guest.hpcpod(*words, check=check, env=environment(disk))

    def pulled(self, disk: str, form: str) -> str:
        """The entry's directory of the image in the site's store, brought there by the first who asks."""
        if (disk, form) not in self._entries:
            self.hpcpod(disk, "image", "pull", "--site", f"--rootfs={form}", REFERENCE)
            self._entries[disk, form] = self.guest.sh(f"echo /run/{disk}/site/images/*.{form}")
        return self._entries[disk, form]

    @contextlib.contextmanager
    def rotten(self, disk: str, file: str, at: int) -> Iterator[None]:
        """While the body runs, a bit of the file is another on the disk."""
        self.do("rot", disk, file, at)
        try:
            yield
        finally:
            self.do("rot", disk, file, at)

    def mount(self, disk: str, form: str, check: bool = True) -> Done:
        words = ("image", "mount", "--lease=a", f"--rootfs={form}", REFERENCE)
        return self.hpcpod(disk, *words, check=check)

    def assert_in_use(self, disk: str) -> None:
        """It cannot be removed; forms that nobody uses go, and are pulled again when they are asked for."""
        done = self.hpcpod(disk, "image", "rm", "--site", REFERENCE, check=False)
        self._entries.clear()
        refused(done, "image-in-use")

    def verify(self, disk: str) -> Done:
        return self.hpcpod(disk, "image", "verify", "--site", REFERENCE, check=False)

    def umount(self, disk: str) -> None:
        self.hpcpod(disk, "image", "umount", "--lease=a", "--all")

    def offset(self, form: str, region: str, entry: str) -> int:
        """Where a region of the packed file is."""
        head = bytes.fromhex(
            self.guest.sh(f"head -c 4096 {entry}/rootfs.{form} | od -An -v -tx1 | tr -d ' \\n'")
        )
        size = int(self.guest.sh(f"stat -c %s {entry}/rootfs.{form}"))
        if region in ("data", "tail"):
            return size // 2 if region == "data" else size - 1
        return REGIONS[region](form, head)


@pytest.fixture(scope="module")
def node(guest: Guest) -> Iterator[Node]:
    made = Node(guest)
    made.do("prepare")
    yield made
    assert made.do("devices") == []


def refused(done: Done, slug: str = "image-digest") -> str:
    first = done.stderr.splitlines()[0]
    assert done.returncode == 125 and first.startswith("hpcpod: ") and first.endswith(f" [{slug}]"), done
    return first


@pytest.mark.parametrize("form", FORMS)
def test_root_mounts_by_dm_verity(node: Node, form: str) -> None:
    """And what it made goes with the mount: the device, and the loop devices below it."""
    entry = node.pulled("plain", form)
    place = node.mount("plain", form).stdout.strip()
    source = node.guest.sh(f"findmnt -no SOURCE {place}")
    assert source.startswith("/dev/dm-")
    assert node.do("read_all", place) == ["good"] * 8
    assert "dm-verity" in node.hpcpod("plain", "image", "why", REFERENCE).stdout
    assert node.guest.run(["dd", "if=/dev/zero", f"of={source}", "count=1"], check=False).returncode != 0
    node.assert_in_use("plain")
    assert entry in "".join(node.do("devices"))
    node.umount("plain")
    assert node.do("devices") == []


def test_a_pod_that_outlives_the_mount_keeps_its_device(node: Node, form: str = "squashfs") -> None:
    """The same image can be mounted again meanwhile, by a device of another name; it cannot be removed."""
    node.pulled("plain", form)
    place = node.mount("plain", form).stdout.strip()
    node.guest.sh(f"mkdir -p /run/pod; mount --bind {place} /run/pod")
    node.umount("plain")
    assert node.do("read_all", "/run/pod") == ["good"] * 8
    node.assert_in_use("plain")
    node.mount("plain", form)
    assert len([name for name in node.do("devices") if name.startswith("hpcpod-")]) == 2
    node.umount("plain")
    node.guest.sh("umount /run/pod")
    assert node.do("devices") == []


@pytest.mark.parametrize("region", [*REGIONS, "tree"])
@pytest.mark.parametrize("form", FORMS)
def test_a_bit_flips_before_the_mount(node: Node, form: str, region: str) -> None:
    """What the mount reads, it refuses by name; else reading is refused, and the next mount says why."""
    entry = node.pulled("plain", form)
    file = f"{entry}/rootfs.verity" if region == "tree" else f"{entry}/rootfs.{form}"
    at = 10 if region == "tree" else node.offset(form, region, entry)
    with node.rotten("plain", file, at):
        done = node.mount("plain", form, check=False)
        if done.returncode == 0:
            answers = node.do("read_all", done.stdout.strip())
            assert set(answers) <= {"good", "EIO"}, answers
            # what follows the end of the file system is read by nothing
            assert "EIO" in answers or region == "tail", answers
            if "EIO" in answers:
                refused(node.mount("plain", form, check=False))
            node.umount("plain")
        else:
            refused(done)
        assert node.do("devices") == []
        assert ("rootfs.verity" if region == "tree" else f"byte {at // 4096 * 4096}") in refused(
            node.verify("plain")
        )


@pytest.mark.parametrize("form", FORMS)
def test_a_bit_flips_while_it_is_mounted(node: Node, form: str) -> None:
    entry = node.pulled("plain", form)
    place = node.mount("plain", form).stdout.strip()
    with node.rotten("plain", f"{entry}/rootfs.{form}", node.offset(form, "data", entry)):
        answers = node.do("read_all", place)
        assert "EIO" in answers and set(answers) <= {"good", "EIO"}, answers
        assert "is not what was packed" in refused(node.mount("plain", form, check=False))
        node.umount("plain")


def test_without_a_device_mapper_the_file_is_compared(node: Node) -> None:
    entry = node.pulled("plain", "squashfs")
    node.guest.sh("mv /dev/mapper /dev/mapper.away")
    try:
        place = node.mount("plain", "squashfs").stdout.strip()
        assert node.guest.sh(f"findmnt -no SOURCE {place}").startswith("/dev/loop")
        assert "device mapper" in node.hpcpod("plain", "image", "why", REFERENCE).stdout
        node.umount("plain")
        node.guest.sh("rm -rf /run/site-plain/verified/*")  # as after a boot
        with node.rotten("plain", f"{entry}/rootfs.squashfs", 200_000):
            said = refused(node.mount("plain", "squashfs", check=False))
            assert "from byte 196608 on" in said
    finally:
        node.guest.sh("mv /dev/mapper.away /dev/mapper")


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_kill_leaves_is_swept(node: Node, resumed: bool) -> None:
    """But no device that is in use, and none that is somebody else's."""
    node.pulled("plain", "squashfs")
    node.mount("plain", "squashfs")
    name = node.do("leave_device", resumed)
    assert len(node.do("devices")) == 4 and name in node.do("devices")  # the mount's, its two loops, and this
    node.hpcpod("plain", "image", "gc", "--site")
    assert len(node.do("devices")) == 3 and name not in node.do("devices")
    node.umount("plain")
    assert node.do("devices") == []


# --------------------------------------------------------------------------- fs-verity


@pytest.mark.parametrize("form", FORMS)
def test_the_site_s_store_has_fs_verity(node: Node, form: str) -> None:
    """The kernel measures what hpcpod computed, nobody writes, and no device is needed for the checking."""
    entry = node.pulled("verity", form)
    file = f"{entry}/rootfs.{form}"
    assert len(node.do("measure", file)) == 64
    assert node.do("write_to", file) == "EPERM"
    place = node.mount("verity", form).stdout.strip()
    assert node.guest.sh(f"findmnt -no SOURCE {place}").startswith(
        "/dev/loop"
    )  # Linux 6.1: no EROFS from files
    assert "fs-verity" in node.hpcpod("verity", "image", "why", REFERENCE).stdout
    assert node.do("read_all", place) == ["good"] * 8
    with node.rotten("verity", file, node.offset(form, "data", entry)):
        answers = node.do("read_all", place)
        assert "EIO" in answers and set(answers) <= {"good", "EIO"}, answers
        node.umount("verity")
        assert "fs-verity refuses what is there (EIO)" in refused(node.verify("verity"))


@pytest.mark.parametrize("region", ["superblock", "inodes"])
@pytest.mark.parametrize("form", FORMS)
def test_what_fs_verity_refuses_at_the_mount_has_a_name(node: Node, form: str, region: str) -> None:
    entry = node.pulled("verity", form)
    with node.rotten("verity", f"{entry}/rootfs.{form}", node.offset(form, region, entry)):
        refused(node.mount("verity", form, check=False))
        assert node.do("devices") == []


def test_a_file_that_was_exchanged_for_another_with_fs_verity(node: Node) -> None:
    file = f"{node.pulled('verity', 'squashfs')}/rootfs.squashfs"
    node.guest.sh(
        f"cp {file} {file}.new; printf x | dd of={file}.new conv=notrunc seek=5000 bs=1 status=none"
    )
    node.guest.sh(f"fsverity enable {file}.new; mv {file} {file}.old; mv {file}.new {file}")
    assert "fs-verity digest" in refused(node.mount("verity", "squashfs", check=False))
    node.guest.sh(f"mv {file}.old {file}")
    node.mount("verity", "squashfs")
    node.umount("verity")


@pytest.mark.needs("fuse")
def test_a_start_reads_nothing_of_a_user_s_image(node: Node) -> None:
    """Who has no root has fs-verity as well."""
    # no site's store, which has it already
    own = {"HPCPOD_CONFIG": "", "HPCPOD_STORE": "/run/verity/own", "HPCPOD_RUNTIME": "/run/hpcpod-own"}
    places = environment("verity") | own
    user: dict[str, Any] = {"uid": 1001, "env": places}
    node.guest.hpcpod("image", "pull", "--rootfs=squashfs", REFERENCE, **user)
    file = node.guest.sh("echo /run/verity/own/images/*/rootfs.squashfs")
    assert len(node.do("measure", file)) == 64
    assert node.guest.call("tests.vm.inside:check", file, **user) < 4096
    with node.rotten("verity", file, 200_000):
        assert node.guest.call("tests.vm.inside:check", file, **user) < 4096  # it is the reading that fails
        assert node.guest.run(["cat", file], uid=1001, check=False).returncode == 1
        refused(node.guest.hpcpod("image", "verify", REFERENCE, check=False, **user))
    with node.rotten("verity", file, 40):  # no server would start: so much is looked at
        assert "fs-verity refuses" in node.guest.call("tests.vm.inside:refusal", file, **user)


@pytest.mark.parametrize(("disk", "said"), [("verity", "file system has it"), ("plain", "has no fs-verity")])
def test_doctor_says_what_the_node_has(node: Node, disk: str, said: str) -> None:
    places = environment(disk) | {"HPCPOD_STORE": f"/run/{disk}/doctor"}
    text = node.guest.hpcpod("doctor", check=False, env=places).stdout
    (line,) = [row for row in text.splitlines() if " fs-verity " in row]
    assert said in line, text
    assert "ok    dm-verity" in text


def test_the_guest_cannot_change_this_machine(guest: Guest, tmp_path: Path) -> None:
    guest.sh("mkdir /run/host; mount -t virtiofs hostroot /run/host")
    done = guest.run(["touch", f"/run/host{tmp_path}/x", "/run/host/var/tmp/x"], check=False)
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []
    guest.sh("umount /run/host")
