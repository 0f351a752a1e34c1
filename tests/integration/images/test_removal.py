# SPDX-License-Identifier: Apache-2.0
"""Taking images out of the store, and sweeping what killed processes left: nothing in use, nobody else's."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcpod.images.stores import embryo, removal, usage
from hpcpod.images.stores.destination import PREFIX
from hpcpod.images.stores.store import Store, StoredImage, sweep
from hpcpod.images.unpacking.tree import _open_directory, remove_tree
from hpcpod.model import Form
from tests.conftest import PACKAGES, Account
from tests.testbed.layouts import digest, file, image, write_layout
from tests.testbed.places import call_as, scan

ONE = image(file(b"one", b"1"))
TWO = image(file(b"two", b"2"))
HPCPOD = [sys.executable, "-m", "hpcpod"]
PYTHON = {"PYTHONPATH": PACKAGES}


def stored(account: Account) -> list[str]:
    done = account.run([*HPCPOD, "image", "list", "--json"], env=PYTHON, check=True)
    return [entry["digest"] for entry in json.loads(done.stdout)]


def test_list_and_remove(user: Account) -> None:
    reference = f"oci:{write_layout(user.home / 'layout', {'one': ONE, 'two': TWO})}"
    for tag in ("one", "two"):
        user.run(
            [*HPCPOD, "image", "pull", "--platform", "linux/amd64", f"{reference}:{tag}"],
            env=PYTHON,
            check=True,
        )
    one, two = digest(ONE.blobs()[0]), digest(TWO.blobs()[0])
    assert set(stored(user)) == {one, two}
    table = user.run([*HPCPOD, "image", "list"], env=PYTHON, check=True).stdout
    assert one[:19] in table
    assert f"{reference}:two" in table
    user.run([*HPCPOD, "image", "rm", one[:20]], env=PYTHON, check=True)
    assert stored(user) == [two]
    again = user.run([*HPCPOD, "image", "rm", one], env=PYTHON)
    assert (again.returncode, "[image-not-found]" in again.stderr) == (125, True)
    user.run([*HPCPOD, "image", "rm", f"{reference}:two"], env=PYTHON, check=True)
    assert stored(user) == []
    assert list(user.store.glob("tmp/*")) == list(user.store.glob("garbage/*")) == []


@contextmanager
def mounted(user: Account, rootfs: str, how: str) -> Iterator[None]:
    """A process of the user has the tree mounted."""
    mount = {
        "bind": f"mount --bind {rootfs} /mnt",
        "overlay": f"mount -t overlay -o lowerdir={rootfs}:/usr/share/man o /mnt",
    }[how]
    holder = user.start(
        ["unshare", "--user", "--mount", "--map-root-user", "sh", "-c", f"{mount} && echo ready && cat"],
        stdin=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n", holder.communicate()
    try:
        yield
    finally:
        holder.communicate(timeout=10)


def pulled(user: Account) -> str:
    """The tree of an image that was pulled."""
    reference = f"oci:{write_layout(user.home / 'layout', ONE)}"
    user.run([*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference], env=PYTHON, check=True)
    return str(next(user.store.glob("images/*/rootfs")))


@pytest.mark.needs("userns")
@pytest.mark.parametrize("how", ["bind", "overlay"])
def test_images_in_use_are_kept(user: Account, how: str) -> None:
    rootfs = pulled(user)
    name = Path(rootfs).parent.name.replace("-", ":", 1)
    with mounted(user, rootfs, how):
        refused = user.run([*HPCPOD, "image", "rm", name], env=PYTHON)
        assert (refused.returncode, "[image-in-use]" in refused.stderr) == (125, True)
        assert Path(rootfs, "one").exists()
    user.run([*HPCPOD, "image", "rm", name], env=PYTHON, check=True)


@pytest.mark.needs("userns")
@pytest.mark.parametrize("how", ["bind", "overlay"])
def test_an_image_that_a_pod_took_just_before_goes_back(user: Account, how: str) -> None:
    """The pod started after the first look and before the rename: the second look finds it."""
    rootfs = pulled(user)
    store = Store(str(user.store))
    name = Path(rootfs).parent.name.replace("-", ":", 1)

    def work() -> None:
        image = store.stored(name)
        assert image is not None
        removal.take_out(store, image)

    with mounted(user, rootfs, how):
        assert call_as(user.uid, work).slug == "image-in-use"
        assert Path(rootfs, "one").exists()
        assert list(user.store.glob("garbage/*")) == []
    assert call_as(user.uid, work).slug is None
    assert len(list(user.store.glob("garbage/*"))) == 1
    assert not Path(rootfs).exists()


@pytest.mark.needs("userns")
@pytest.mark.parametrize("how", ["bind", "overlay"])
def test_the_same_image_of_another_store_may_go(user: Account, how: str) -> None:
    """Its path ends in the same names, on the same file system."""
    rootfs = pulled(user)
    name = Path(rootfs).parent.name.replace("-", ":", 1)
    other = {**PYTHON, "HPCPOD_STORE": str(user.home / "other")}
    reference = f"oci:{user.home / 'layout'}"
    pull = [*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference]
    user.run(pull, env=other, check=True)
    with mounted(user, rootfs, how):
        user.run([*HPCPOD, "image", "rm", name], env=other, check=True)
        link = user.home / "a link with spaces"
        link.symlink_to(user.store.parent)  # the store itself, by another path
        for store in (user.store, link / user.store.name):
            refused = user.run([*HPCPOD, "image", "rm", name], env={**PYTHON, "HPCPOD_STORE": str(store)})
            assert "[image-in-use]" in refused.stderr
    assert Path(rootfs).exists() and not list((user.home / "other" / "images").iterdir())


@pytest.mark.needs("userns")
def test_a_store_whose_path_has_spaces(user: Account) -> None:
    env = {**PYTHON, "HPCPOD_STORE": str(user.home / "my own\tstore")}
    reference = f"oci:{write_layout(user.home / 'layout', ONE)}"
    pull = [*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference]
    name = user.run(pull, env=env, check=True).stdout.strip()
    (rootfs,) = (user.home / "my own\tstore" / "images").glob("*/rootfs")
    with mounted(user, f"'{rootfs}'", "bind"):
        assert "[image-in-use]" in user.run([*HPCPOD, "image", "rm", name], env=env).stderr
    user.run([*HPCPOD, "image", "rm", name], env=env, check=True)


def test_in_use_looks_at_names_as_wholes(user: Account) -> None:
    store = Store(str(user.store))
    image = StoredImage(digest(b""), "", "", 0, 0, 0, 0)
    assert usage.user_of(store, image, usage.read_mounts()) is None


# --------------------------------------------------------------------------- sweeps

DEAD = f"{embryo.unique_name().partition('-')[0]}-0123456789ab-4026531836-3999999-77-ab12"


def planted(path: Path, uid: int) -> Path:
    """A leftover as a killed process of this user would leave."""
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "f").write_text("x")
    for each in (path, *path.rglob("*")):
        os.chown(each, uid, uid)
    return path


@pytest.mark.needs("root")
def test_sweeps_leave_other_users_directories(user: Account) -> None:
    """Root unpacks in a directory like /tmp."""
    shared = user.home / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    theirs = planted(shared / f"{PREFIX}{DEAD}", user.uid)
    ours = planted(shared / f"{PREFIX}{DEAD}1", 0)
    mixed = planted(shared / f"{PREFIX}{DEAD}2", 0)
    os.chown(mixed / "deep", user.uid, user.uid)
    before = scan(theirs), theirs.stat(), scan(mixed), (mixed / "deep").stat()
    assert embryo.sweep(str(shared), PREFIX) == 1
    assert not ours.exists()
    assert (scan(theirs), theirs.stat(), scan(mixed), (mixed / "deep").stat()) == before


@pytest.mark.needs("root")
def test_gc_leaves_other_users_directories(user: Account) -> None:
    for name in ("images", "tmp", "garbage"):
        (user.store / name).mkdir(parents=True)
    theirs = [planted(user.store / name / DEAD, user.uid) for name in ("tmp", "garbage")]
    ours = [planted(user.store / name / f"{DEAD}1", 0) for name in ("tmp", "garbage")]
    assert sweep(str(user.store)) == len(ours)
    assert all((path / "deep" / "f").exists() for path in theirs)
    assert not any(path.exists() for path in ours)


def test_what_has_its_final_name_is_not_swept_nor_discarded(tmp_path: Path) -> None:
    """Its maker is late with the lock, or fails after the rename."""
    made = embryo.make_embryo(str(tmp_path))
    Path(made.path, "f").write_text("x")
    os.rename(made.path, tmp_path / "final")
    made.discard()
    assert (tmp_path / "final" / "f").exists()


def test_garbage_of_a_living_process_is_not_swept(tmp_path: Path) -> None:
    """An image that is being removed may go back to its place."""
    embryo.make_embryo(str(tmp_path)).release()
    assert call_as(os.geteuid(), lambda: embryo.sweep(str(tmp_path), own=True)).value == 0
    assert embryo.sweep(str(tmp_path)) == 0
    assert embryo.sweep(str(tmp_path), own=True) == 1


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("field", ["node", "pid namespace"])
def test_whose_maker_cannot_be_asked_after_is_dead_when_it_is_old(tmp_path: Path, field: str) -> None:
    """Another node's, or one of another pid namespace: it says that it is alive by the time of change."""
    node, boot, namespace, *rest = embryo.unique_name().split("-")
    name = {
        "node": ["elsewhere", "0123456789ab", namespace, *rest],
        "pid namespace": [node, boot, "1", *rest],
    }[field]
    path = tmp_path / "-".join(name)
    path.mkdir()
    assert embryo.sweep(str(tmp_path)) == 0
    age(path, embryo.FOREIGN_SECONDS + 60)
    assert embryo.sweep(str(tmp_path)) == 1


def test_a_pid_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    *name, started, random = embryo.unique_name().split("-")
    (tmp_path / "-".join([*name, str(int(started) - 1), random])).mkdir()
    assert embryo.sweep(str(tmp_path)) == 1


def test_makers_say_that_they_are_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embryo, "BEAT_SECONDS", 0.0)
    made = embryo.make_embryo(str(tmp_path))
    age(Path(made.path), 1000)
    made.beat()
    assert time.time() - Path(made.path).stat().st_mtime < 500
    made.release()


def test_removing_follows_no_link(tmp_path: Path) -> None:
    """chmod(2) by name would: of closed directories, and of links that took their place."""
    victim = tmp_path / "victim"
    victim.mkdir(0o500)
    tree = tmp_path / "tree"
    closed = tree / "closed" / "inner"
    closed.mkdir(parents=True)
    (closed / "link").symlink_to(victim)
    (tree / "link").symlink_to(victim)
    closed.chmod(0)
    closed.parent.chmod(0o500)
    with pytest.raises(NotADirectoryError):
        _open_directory(os.fsencode(tree / "link"), None, None)
    remove_tree(str(tree))
    assert not tree.exists()
    assert victim.stat().st_mode & 0o777 == 0o500


@pytest.mark.parametrize("words", [["image", "gc"], ["gc"]])
def test_gc_finds_what_a_killed_unpacking_left_anywhere(user: Account, words: list[str]) -> None:
    place = user.home / "elsewhere"
    place.mkdir()
    os.chown(place, user.uid, user.uid)
    left = planted(place / f"{PREFIX}{DEAD}", user.uid)
    announced = user.runtime / "unpacking" / DEAD
    user.run([*HPCPOD, "gc"], env=PYTHON, check=True)  # makes the run-time directory
    announced.parent.mkdir(exist_ok=True)
    announced.symlink_to(place)
    for path in (announced.parent, announced):
        os.chown(path, user.uid, user.uid, follow_symlinks=False)
    user.run([*HPCPOD, *words], env=PYTHON, check=True)
    assert not left.exists()
    assert not announced.is_symlink()


def test_unpacking_takes_its_announcement_back(user: Account) -> None:
    reference = f"oci:{write_layout(user.home / 'layout', ONE)}"
    command = [*HPCPOD, "image", "unpack", "--platform", "linux/amd64", reference, "out"]
    user.run(command, env=PYTHON, check=True)
    assert list((user.runtime / "unpacking").iterdir()) == []


META = "meta.json"


def test_gc_keeps_what_it_could_only_not_read_this_once(user: Account) -> None:
    """EMFILE, EIO, ESTALE: they say nothing about the image."""
    reference = f"oci:{write_layout(user.home / 'layout', ONE)}"
    user.run([*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference], env=PYTHON, check=True)
    entry = next(user.store.glob("images/*"))
    store = Store(str(user.store))
    name = digest(ONE.blobs()[0])
    assert not store.is_damaged(name, Form.DIRECTORY)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/", os.O_PATH)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, limit[1]))
    try:
        assert store.stored(name) is None
        assert not store.is_damaged(name, Form.DIRECTORY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        os.close(held[0])
    for wrong in (
        "[" * 100_000,
        "{}",
        '{"digest": 3}',
        (entry / META).read_text().replace('"entries": 1', '"entries": "x"'),
    ):
        (entry / META).write_text(wrong)
        assert store.is_damaged(name, Form.DIRECTORY), wrong[:40]


def test_an_entry_of_a_version_with_fewer_facts_is_an_image(user: Account) -> None:
    reference = f"oci:{write_layout(user.home / 'layout', ONE)}"
    command = [*HPCPOD, "image", "pull", "--platform", "linux/amd64", reference]
    user.run(command, env=PYTHON, check=True)
    entry = next(user.store.glob("images/*"))
    fields = json.loads((entry / META).read_text())
    old = ("digest", "reference", "platform", "size", "entries", "skipped", "when")
    (entry / META).write_text(json.dumps({field: fields[field] for field in old}))
    (entry / "facts.json").unlink()
    done = user.run([*HPCPOD, "image", "gc"], env=PYTHON, check=True)
    assert entry.exists(), done.stdout + done.stderr
    assert stored(user) == [fields["digest"]]
    user.run(command, env=PYTHON, check=True)
    assert (next(user.store.glob("images/*")) / "facts.json").exists()
