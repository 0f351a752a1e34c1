# SPDX-License-Identifier: Apache-2.0
"""From a reference to an image that may run on this node: found in a store, or fetched into the user's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from hpcpod.config import runtime_directory
from hpcpod.errors import ImageNotFound
from hpcpod.frozen import frozen
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.layout import stamp_of
from hpcpod.images.sources.platforms import check_fits, platform_of
from hpcpod.images.sources.reference import Reference, parse_reference
from hpcpod.images.sources.source import Source, open_source
from hpcpod.images.stores import names
from hpcpod.images.stores.admission import Admission, Terms, admit, tell_once, users_terms
from hpcpod.images.stores.names import Known
from hpcpod.images.stores.store import Store, open_site, open_store
from hpcpod.images.trust.facts import Signature, Subject
from hpcpod.log import Progress, Silent
from hpcpod.model import FileStamp, Form, FuseImage, Phase, Platform, Pull, VerifiedImage
from hpcpod.settings import Settings, read_settings


@frozen
class Present:
    """An image in a store of this node, and what the answer depends on.

    phases: how long each took: ``resolve``, ``verify``, and where they happened ``wait`` for another process
    that does the work, and ``unpack``.  guards: files, and files that must stay absent.  until: seconds since
    1970, 0 for no end.  fresh: the answer is good only for who waited for it.
    """

    image: VerifiedImage
    phases: tuple[Phase, ...]
    guards: tuple[FileStamp, ...]
    until: int = 0
    fresh: bool = False


@frozen
class _Wish:
    """What is wanted, and where it may be.  site: the site's store, where there is one."""

    text: str
    reference: Reference
    platform: Platform
    limits: Limits
    progress: Progress
    settings: Settings
    form: Form | None
    pull: Pull
    access: Access
    runtime: str
    terms: Terms
    site: Store | None
    own: Store

    @property
    def stores(self) -> tuple[Store, ...]:
        """In the order in which they are asked."""
        return (self.site, self.own) if self.site else (self.own,)

    def find(self, digest: str) -> VerifiedImage | None:
        """The image in the first store that has it."""
        found = (store.find(digest, self.text, self.limits, self.form) for store in self.stores)
        return next((image for image in found if image), None)

    def open(self) -> Source:
        """The image at its origin."""
        return open_source(self.reference, self.limits, self.access)


def ensure(  # noqa: PLR0913 - each is a fact of its own, all but the first by name
    reference: str,
    *,
    environment: Mapping[str, str],
    uid: int,
    platform: Platform | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
    settings: Settings | None = None,
    form: Form | None = None,
    pull: Pull = Pull.MISSING,
    insecure: frozenset[str] = frozenset(),
) -> Present:
    """The image that a reference names, from the site's store or the user's own, if it may run.

    One that is in neither is fetched, verified and unpacked into the user's.  form: the only one to take.
    insecure: names of checks that the user switches off.  Raises HpcpodError of many kinds;
    whatever it raises, nothing half-made is left.
    """
    settings = settings or read_settings(environment)
    runtime = runtime_directory(environment, uid)
    own = open_store(environment, uid)
    wish = _Wish(
        text=reference,
        reference=parse_reference(reference),
        platform=platform or platform_of(os.uname().machine),
        limits=limits,
        progress=progress or Silent(),
        settings=settings,
        form=form,
        pull=pull,
        access=Access(environment, insecure, f"{own.tmp}/blobs", progress or Silent()),
        runtime=runtime,
        terms=users_terms(settings, environment, uid, insecure, f"{runtime}/trust"),
        site=open_site(settings),
        own=own,
    )
    return _remembered(wish) or _asked(wish)


def _remembered(wish: _Wish) -> Present | None:
    """By what the name meant when it was last asked; None where that is not known, or not to be used."""
    start = time.time_ns()
    if wish.reference.transport != "docker":
        return None
    known = names.recall(wish.stores, wish.reference, wish.platform)
    if known and wish.reference.short and not _still_means(wish, known):
        known = None
    image = wish.find(known.digest) if known and wish.pull is not Pull.ALWAYS else None
    if known is None or image is None:
        if wish.pull is Pull.NEVER:
            raise ImageNotFound(
                f"image {wish.reference}: in no store of this node, and no registry is to be asked",
                hint="--pull=missing asks one",
            )
        return None
    resolved = time.time_ns()
    check_fits(image.platform, wish.platform, str(wish.reference))
    admission = admit(wish.terms, known.subject, lambda: _collect(wish, known), known.signatures)
    stamp = known.stamp
    if admission.signatures != known.signatures:
        stamp = _remember(wish, known.subject, admission)
    phases = (Phase("resolve", start, resolved), _since("verify", resolved))
    return _present(wish, image, stamp, phases, admission)


def _still_means(wish: _Wish, known: Known) -> bool:
    """Whether registries.conf still lets a short name mean what it meant.  Raises RegistryDenied."""
    from hpcpod.images.sources.registry.source import RegistrySource

    with RegistrySource(wish.reference, wish.limits, wish.access) as source:
        return source.may_mean(known.subject.identity)


def _collect(wish: _Wish, known: Known) -> tuple[Signature, ...]:
    """Signatures of an image whose name was remembered, for a policy that those known do not meet."""
    if wish.pull is Pull.NEVER:
        return known.signatures or ()
    with wish.open() as source:
        return source.signatures(wish.platform)


def _asked(wish: _Wish) -> Present:
    """By asking where the image comes from."""
    start = time.time_ns()
    with wish.open() as source:
        identity = _recognised(wish, source)
        subject = source.subject(wish.platform)
        resolved = time.time_ns()
        image = wish.find(subject.digest)
        if image is not None:
            check_fits(image.platform, wish.platform, source.name)
        admission = admit(wish.terms, subject, lambda: source.signatures(wish.platform))
        phases: tuple[Phase, ...] = (_since("verify", resolved),)
        if image is None:
            image, phases = _fetch(wish, source, subject.digest)
        stamp = source.stamp
    if wish.reference.transport == "docker":
        stamp = _remember(wish, subject, admission)
    elif identity:
        _remember(wish, subject, Admission(), identity)
    return _present(wish, image, stamp, (Phase("resolve", start, resolved), *phases), admission)


def _recognised(wish: _Wish, source: Source) -> str:
    """The identity of a file or tree; its digest is not found out again while a store has the image.

    Empty where there is none to remember.
    """
    if wish.reference.transport not in names.REMEMBERED:
        return ""
    identity = source.identity()
    known = names.recall((wish.own,), wish.reference, wish.platform) if identity else None
    if known and known.identity == identity and wish.find(known.digest):
        source.assume(known.digest)
    return identity


def _fetch(wish: _Wish, source: Source, digest: str) -> tuple[VerifiedImage, tuple[Phase, ...]]:
    from hpcpod.images.stores.fetch import Order, fetch

    locks = f"{wish.runtime}/locks"
    order = Order(
        wish.text, wish.platform, wish.limits, wish.progress, locks, wish.settings, wish.form, wish.access
    )
    fetched = fetch(wish.own, source, digest, order)
    if wish.terms.gates.is_open:
        tell_once(wish.own.directory, wish.progress)
    return fetched


def _remember(wish: _Wish, subject: Subject, admission: Admission, identity: str = "") -> FileStamp | None:
    """Write down what the name means, unless that is written already: plans stand on the file."""
    before = names.recall((wish.own,), wish.reference, wish.platform)
    signatures = admission.signatures
    same = before and (before.subject, before.identity) == (subject, identity)
    if before and same and signatures in (None, before.signatures):
        return before.stamp
    content = names.to_bytes(Known(subject.digest, subject, signatures, identity))
    return names.remember(wish.own, names.key_of(wish.reference, wish.platform), content)


def _present(
    wish: _Wish,
    image: VerifiedImage,
    stamp: FileStamp | None,
    phases: tuple[Phase, ...],
    admission: Admission,
) -> Present:
    _check_packed(image, f"{wish.runtime}/verified")
    guards = (
        stamp,
        wish.settings.stamp,
        *wish.terms.gates.stamps,
        *_what_root_mounts(wish.site, image),
        *_what_fuse_shows(image),
    )
    return Present(
        image,
        phases,
        tuple(guard for guard in guards if guard),
        admission.until,
        fresh=_must_ask(wish),
    )


def _must_ask(wish: _Wish) -> bool:
    """Whether the next start has to look again: no file tells that the meaning has changed."""
    if wish.reference.transport == "dir" or wish.reference.short:
        return True
    return wish.reference.transport == "docker" and wish.pull is Pull.ALWAYS


def _since(name: str, start: int) -> Phase:
    return Phase(name, start, time.time_ns())


def _what_root_mounts(site: Store | None, image: VerifiedImage) -> tuple[FileStamp, ...]:
    """What changes when root mounts an image of the site's store, of which FUSE was the second choice."""
    if site is None or not isinstance(image.rootfs, FuseImage):
        return ()
    path = f"{site.run}/mounts"
    try:
        return (stamp_of(path, os.stat(path)),)
    except OSError:  # since the node was booted nothing was mounted
        return ()


def _what_fuse_shows(image: VerifiedImage) -> tuple[FileStamp, ...]:
    """The packed file, which is compared again when it changed."""
    if not isinstance(image.rootfs, FuseImage):
        return ()
    return (stamp_of(image.rootfs.file, os.stat(image.rootfs.file)),)


def _check_packed(image: VerifiedImage, verified: str) -> None:
    """Compare a file that FUSE will show with what was packed; root does that for what the kernel mounts."""
    if not isinstance(image.rootfs, FuseImage):
        return
    from hpcpod.images.stores.intact import check_used

    check_used(image.rootfs.file, image.rootfs.name, verified)
