# SPDX-License-Identifier: Apache-2.0
"""Bringing an image into the site's store: the account asks, judges and unpacks, root publishes.

Root handles names of files, and bytes that it does not look into; what they mean the account has found out,
and users' own starts check again what they can: the policy, for one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

from hpcpod.errors import ImageNotFound, StoreUnusable
from hpcpod.frozen import frozen, replace
from hpcpod.images.sources.checks import SIGNATURE
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.sources.source import open_source
from hpcpod.images.stores import names
from hpcpod.images.stores.account import as_account, count_of
from hpcpod.images.stores.admission import Terms, admit
from hpcpod.images.stores.embryo import Embryo, make_embryo, unique_name
from hpcpod.images.stores.fetch import Order, appear, fill, locked
from hpcpod.images.stores.forms import choose, entry_name, parse_entry, parse_form
from hpcpod.images.stores.names import Known
from hpcpod.images.stores.room import Room
from hpcpod.images.stores.site import SiteStore, checked_digest
from hpcpod.images.stores.store import CONFIG, FACTS, MANIFEST, META, Store, StoredImage, content_names
from hpcpod.images.stores.takeover import take_over
from hpcpod.images.stores.tools import form_facts
from hpcpod.images.trust.facts import Signature
from hpcpod.images.trust.gates import gates as read_gates
from hpcpod.images.unpacking.layers import write_error
from hpcpod.model import Form, Pull

AUTHFILE = "/etc/hpcpod/auth.json"
"""Credentials of the site, for the account to read; containers-auth.json(5)."""
_PASSED = (
    "PATH",
    "REGISTRY_AUTH_FILE",
    "CONTAINERS_REGISTRIES_CONF",
    *(f"{scheme}_proxy" for scheme in ("http", "https", "no", "all")),
    *(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "NO", "ALL")),
)
"""What the account gets of root's environment: nothing that leads to root's home."""
_EMBRYO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KEY = re.compile(r"[0-9a-f]{64}")
_NAME = "name"


def accounts_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment by which the account reaches registries."""
    passed = {name: environment[name] for name in _PASSED if name in environment}
    if "REGISTRY_AUTH_FILE" not in passed and os.path.exists(AUTHFILE):
        passed["REGISTRY_AUTH_FILE"] = AUTHFILE
    return passed


@frozen
class _Found:
    """What the account found out.  form: of the entry that is there, None for none."""

    digest: str
    form: Form | None


def pull(store: SiteStore, order: Order) -> tuple[StoredImage, bool]:
    """The image in the site's store, and whether it had to be made.  Raises HpcpodError of many kinds.

    Of several at once, one process does the work and the others wait for it.
    """
    access = replace(order.access, environment=accounts_environment(order.access.environment))
    order = replace(order, locks=store.locks, access=replace(access, blobs=f"{store.tmp}/blobs"))
    forms = (order.form,) if order.form else (Form.EROFS, Form.SQUASHFS, Form.DIRECTORY)
    found = _ask(store, order, forms)
    present = store.stored(found.digest, found.form) if found.form else None
    if present is not None:
        return present, False
    order = _pinned(order, found.digest)
    preferred = parse_form(order.settings.rootfs, "rootfs")
    choice = choose(order.form, form_facts(store.directory, site=True), preferred)
    with locked(store, entry_name(found.digest, choice[0]), order):
        form = _whole(store, found.digest, order, forms)  # another process may have been faster
        if form is not None and (image := store.stored(found.digest, form)):
            return image, False
        store.tidy()
        _produce(store, found.digest, choice, order)
        image = store.stored(found.digest, choice[0])
    if image is None:
        raise StoreUnusable(f"site store {store.directory}: {found.digest} vanished again")
    return image, True


def _pinned(order: Order, digest: str) -> Order:
    """The order for the image that was judged, whatever its name means by now."""
    reference = parse_reference(order.reference)
    if reference.transport != "docker":
        return order
    return replace(order, pinned=replace(reference, digest=digest))


def _ask(store: SiteStore, order: Order, forms: tuple[Form, ...]) -> _Found:
    """The image that a reference means and that may come into the store; what is there of it.

    A registry's name is written down.  Raises ImageUntrusted and what a source raises.
    """
    plain = Store(store.directory, store.run)

    def work() -> tuple[str, str, str, str]:
        known, key = _judged(plain, order)
        whole = (form for form in forms if plain.is_whole(entry_name(known.digest, form), order.limits))
        made = _written(plain, names.to_bytes(known)) if key and known.stamp is None else ""
        return known.digest, next((form.value for form in whole), ""), key, made

    with as_account(store.account, work) as answer:
        if not isinstance(answer, list) or len(answer) != 4 or not all(isinstance(a, str) for a in answer):
            raise StoreUnusable(f"site store: {answer!r} is no answer")
        digest, form, key, made = answer
        if made:
            _publish_name(store, key, made)
        return _Found(checked_digest(digest), parse_form(form or "auto", "site store: form"))


def _judged(plain: Store, order: Order) -> tuple[Known, str]:
    """By the account: what the reference means, admitted, and the key of its name; empty for none."""
    environment = order.access.environment
    waived = SIGNATURE in order.access.insecure
    terms = Terms(read_gates(order.settings, environment, 0), site=True, waived=waived)
    reference = parse_reference(order.reference)
    if reference.transport != "docker":
        return _asked(order, terms), ""
    known = None if order.pull is Pull.ALWAYS else names.recall((plain,), reference, order.platform)
    if known is not None and _is_here(plain, known, order):
        known = _admitted(known, order, terms)
    elif order.pull is Pull.NEVER:
        raise ImageNotFound(
            f"image {reference}: not in the site's store, and no registry is to be asked",
            hint="--pull=missing asks one",
        )
    else:
        known = _asked(order, terms)
    return known, names.key_of(reference, order.platform)


def _admitted(known: Known, order: Order, terms: Terms) -> Known:
    """What was known, if it is admitted today."""
    found = admit(terms, known.subject, lambda: _signatures(order, known), known.signatures)
    if found.signatures == known.signatures:
        return known
    return replace(known, signatures=found.signatures, stamp=None)


def _asked(order: Order, terms: Terms) -> Known:
    """By asking where the image comes from."""
    with open_source(parse_reference(order.reference), order.limits, order.access) as source:
        subject = source.subject(order.platform)
        found = admit(terms, subject, lambda: source.signatures(order.platform))
    return Known(subject.digest, subject, found.signatures)


def _is_here(plain: Store, known: Known, order: Order) -> bool:
    return any(plain.is_whole(entry_name(known.digest, form), order.limits) for form in Form)


def _signatures(order: Order, known: Known) -> tuple[Signature, ...]:
    """Those of an image whose name was remembered, looked for again."""
    if order.pull is Pull.NEVER:
        return known.signatures or ()
    with open_source(parse_reference(order.reference), order.limits, order.access) as source:
        return source.signatures(order.platform)


def _written(plain: Store, content: bytes) -> str:
    """By the account: put down what root is to publish; the name of the directory that it lies in."""
    embryo = make_embryo(plain.tmp)
    fd = os.open(_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=embryo.fd)
    with open(fd, "wb") as file:
        file.write(content)
    return os.path.basename(embryo.path)


def _publish_name(store: SiteStore, key: str, made: str) -> None:
    """By root: the same bytes, in a file of its own.  Raises StoreUnusable, StoreFull."""
    if not _KEY.fullmatch(key) or not _EMBRYO.fullmatch(made):
        raise StoreUnusable(f"site store: {key!r} in {made!r} is no name of an image")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        directory = os.open(f"{store.tmp}/{made}", flags | os.O_DIRECTORY)
        try:
            fd = os.open(_NAME, flags, dir_fd=directory)
        finally:
            os.close(directory)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            # A link that the account made to somebody's file: root must not show what others may not read.
            if not stat.S_ISREG(status.st_mode) or status.st_uid != store.account.uid or status.st_nlink != 1:
                raise StoreUnusable("site store: what an image's name means is no file of the account's")
            content = file.read(names.LARGEST + 1)
    except OSError as error:
        raise write_error(error, store.directory) from None
    if len(content) > names.LARGEST:
        raise StoreUnusable(f"site store: {len(content)} bytes of signatures or more, limit {names.LARGEST}")
    names.remember(store, key, content, 0o644, store.garbage)


def _whole(store: SiteStore, digest: str, order: Order, forms: tuple[Form, ...]) -> Form | None:
    """Of these forms the first in which the store has the image."""
    return next((form for form in forms if store.is_whole(entry_name(digest, form), order.limits)), None)


def _produce(store: SiteStore, digest: str, choice: tuple[Form, str], order: Order) -> None:
    from hpcpod.images.stores.collect import enforce, make_room

    name = entry_name(digest, choice[0])
    with as_account(store.account, lambda: _compressed(order)) as answer:
        room = make_room(store, count_of(answer), order.settings, order.progress)
    with as_account(store.account, lambda: _fill(store, digest, choice, order, room)) as made:
        if not isinstance(made, list) or len(made) != 2:
            raise StoreUnusable(f"site store: {made!r} is no answer")
        _publish(store, (str(made[0]), count_of(made[1])), name, order)
    store.tidy()
    enforce(store, order.settings, order.progress, keep=name)


def _compressed(order: Order) -> int:
    with open_source(order.pinned or parse_reference(order.reference), order.limits, order.access) as source:
        return source.describe(order.platform).size


def _fill(store: Store, digest: str, choice: tuple[Form, str], order: Order, room: Room) -> tuple[str, int]:
    """Name and size of the finished embryo, which belongs to the account until root has published it."""
    with open_source(order.pinned or parse_reference(order.reference), order.limits, order.access) as source:
        described = source.describe(order.platform)
        if described.digest != digest:
            raise StoreUnusable(f"image {order.reference}: changed from {digest} to {described.digest}")
        embryo = fill(store, source, described, choice, order, room)
        return os.path.basename(embryo.path), embryo.disk


def _publish(store: SiteStore, finished: tuple[str, int], name: str, order: Order) -> None:
    """Make the entry root's own where the account cannot reach it, then give it its name.

    finished: what the account has made, and how many bytes it takes, by its word.
    """
    from hpcpod.images.stores.collect import fit

    made, disk = finished
    entry = parse_entry(name)
    assert entry is not None
    if not _EMBRYO.fullmatch(made):
        raise StoreUnusable(f"site store: {made!r} is no name of a directory in the making")
    path = f"{store.garbage}/{unique_name()}"
    try:
        os.rename(f"{store.tmp}/{made}", path)
        embryo = Embryo(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError as error:
        raise write_error(error, store.directory) from None
    try:
        take_over(embryo.fd, {MANIFEST, CONFIG, FACTS, META, *content_names(entry[1])}, store.account.uid)
        fit(store, disk, order.settings, order.progress, name)
        appear(store, embryo, name, order.limits)
    except OSError as error:
        raise write_error(error, store.directory) from None
    finally:
        embryo.release()
        store.dispose(path)  # nothing, if it has its name
