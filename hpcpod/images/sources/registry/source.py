# SPDX-License-Identifier: Apache-2.0
"""``docker://NAME``: an image of a registry as a source of the store (../source.py says what that is)."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpcpod.errors import (
    HpcpodError,
    ImageDigestMismatch,
    ImageLimitExceeded,
    ImageNotFound,
    RegistryDenied,
    StoreFull,
)
from hpcpod.frozen import frozen, replace
from hpcpod.images.dockername import DockerName, parse_name
from hpcpod.images.limits import Limits
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.manifest import Descriptor
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.registry import lookaside
from hpcpod.images.sources.registry.client import Client, Leave
from hpcpod.images.sources.registry.conf import RegistriesConf, full_names, places
from hpcpod.images.sources.registry.documents import RegistryDocuments
from hpcpod.images.sources.registry.files import read_registries
from hpcpod.images.sources.registry.keyring import Keyring
from hpcpod.images.sources.registry.patience import DEFAULT_PATIENCE, Patience
from hpcpod.images.sources.registry.places import Places
from hpcpod.images.sources.registry.web import Web
from hpcpod.images.sources.source import Described, described
from hpcpod.images.sources.walk import Documents, Found, Walk, choose, read_documents
from hpcpod.images.trust.facts import Signature, Subject
from hpcpod.log import Progress, size
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from hpcpod.images.unpacking.layers import Unpacked


@frozen
class Chosen:
    """What the reference means.  name: full, with its tag or digest, before mirrors."""

    name: DockerName
    documents: RegistryDocuments
    found: Found


class RegistrySource:
    """An image of a registry.  A context manager.

    patience: how long registries are waited for.  Raises UsageError and its like for configuration that
    cannot be read, ImageReferenceError for a short name that nobody explains, RegistryDenied for one that is
    blocked.
    """

    def __init__(
        self, reference: Reference, limits: Limits, access: Access, patience: Patience = DEFAULT_PATIENCE
    ) -> None:
        self._limits = limits
        self._access = access
        self._patience = patience
        self._conf = read_registries(access.environment)
        self._names = _names(reference, self._conf)
        self._web = Web(access.environment, patience)
        self._keyring = Keyring(access.environment, self._conf.helpers)
        self._note = access.progress.note
        self._chosen: dict[Platform, Chosen] = {}
        self._documents: Documents | None = None
        self._lock = threading.Lock()
        for name in self._names:  # blocked ones are refused before anybody is asked
            places(self._conf, name)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    @property
    def name(self) -> str:
        """For messages, printable: the full name, as far as it is known."""
        for chosen in self._chosen.values():
            return str(chosen.name)
        return str(self._names[0])

    @property
    def stamp(self) -> None:
        """None: no file says what a name means."""
        return

    def find(self, platform: Platform) -> str:
        """The digest of the manifest for this platform; the registry is asked once.

        Raises ImageNotFound, RegistryFailed, RegistryDenied, ImagePlatformMismatch, ImageInvalid.
        """
        return self._choose(platform).found.descriptor.digest

    def describe(self, platform: Platform) -> Described:
        """Manifest and configuration, verified.  Raises as find() does."""
        chosen = self._choose(platform)
        documents = read_documents(chosen.documents, chosen.found.descriptor, platform, self._limits)
        total = sum(layer.blob.size for layer in documents.layers)
        if total > self._limits.bytes_out:
            raise ImageLimitExceeded(
                f"image {self.name}: layers of {total} bytes, limit bytes_out {self._limits.bytes_out}"
            )
        self._documents = documents
        return described(documents)

    def may_mean(self, identity: str) -> bool:
        """Whether the reference could be for the image of this full name, as the configuration is now."""
        repository = identity.partition("@")[0]
        full = parse_name(repository, short=False)
        return full is not None and any(
            (name.host, name.path) == (full.host, full.path) for name in self._names
        )

    def identity(self) -> str:
        """None: only the registry knows."""
        return ""

    def assume(self, digest: str) -> None:
        """Nothing to do: find() asks the registry."""

    def subject(self, platform: Platform) -> Subject:
        """Scopes as containers-policy.json(5) lists them for docker."""
        chosen = self._choose(platform)
        name = chosen.name if chosen.name.tag or chosen.name.digest else replace(chosen.name, tag="latest")
        return Subject(
            transport="docker",
            scopes=(*lookaside.scopes_of(name), *lookaside.wildcards_of(name)),
            identity=str(replace(name, tag="") if name.digest else name),
            digest=chosen.found.descriptor.digest,
            within=chosen.found.within,
        )

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """Those of cosign beside the image, and simple ones in its lookaside.

        Raises RegistryFailed and its like, TrustUnusable.
        """
        from hpcpod.images.sources.registry.signatures import collect

        chosen = self._choose(platform)
        digests = (chosen.found.descriptor.digest, *chosen.found.within)
        return collect(chosen.documents, chosen.name, digests, self._web, self._access, self._limits)

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Unpack the layers while they arrive.  Raises also RegistryFailed and its like, StoreFull."""
        from hpcpod.images.sources.registry.arrivals import Arrivals
        from hpcpod.images.unpacking.layers import unpack_layers, write_error

        assert self._documents is not None, "describe() comes first"
        documents = self._documents
        origin = next(
            c.documents for c in self._chosen.values() if c.found.descriptor == documents.descriptor
        )
        layers = tuple(layer.blob for layer in documents.layers)
        with _blobs(self._access.blobs, directory) as place:
            _check_space(place, directory, layers)
            arrivals = Arrivals(
                origin, layers, place, lambda: progress.advance(0), lambda error: write_error(error, place)
            )
            with arrivals:
                unpacked = _until_right(
                    lambda: unpack_layers(arrivals, documents, directory, self._limits, progress, readable),
                    arrivals.mend,
                    directory,
                )
                arrivals.forget()
        return unpacked

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    def _choose(self, platform: Platform) -> Chosen:
        with self._lock:
            if platform not in self._chosen:
                self._chosen[platform] = self._ask(platform)
            return self._chosen[platform]

    def _ask(self, platform: Platform) -> Chosen:
        """Go through the names that a short one may stand for.

        One that fails ends the search: a registry that cannot be reached must not make the name mean an image
        of the next.
        """
        refused: list[HpcpodError] = []
        for name in self._names:
            try:
                return self._ask_for(name, platform)
            except (ImageNotFound, RegistryDenied) as error:
                refused.append(error)
        if len(refused) == 1:
            raise refused[0]
        raise ImageNotFound(
            f"image {self._names[0].path}: in none of {len(refused)} registries: "
            + "; ".join(error.message for error in refused),
            hint=refused[0].hint,
        )

    def _ask_for(self, name: DockerName, platform: Platform) -> Chosen:
        documents = RegistryDocuments(str(name), self._places(name), self._limits)
        top = documents.top(name.digest)
        descriptor = Descriptor(top.media_type, top.digest, len(top.raw))
        found = choose(Walk(documents, self._limits), (descriptor,), platform)
        return Chosen(name, documents, found)

    def _places(self, name: DockerName) -> Places:
        off = self._access.insecure
        clients = tuple(
            Client(
                place,
                self._web,
                self._keyring,
                Leave(tls=place.insecure or "tls" in off, http=place.insecure or "http" in off),
            )
            for place in places(self._conf, name)
        )
        return Places(clients, self._patience, self._note)


def _names(reference: Reference, conf: RegistriesConf) -> tuple[DockerName, ...]:
    """The full names that a reference may mean.  Raises ImageReferenceError."""
    if reference.short:
        short = DockerName("", reference.path, reference.tag, reference.digest)
        return full_names(conf, short)
    full = parse_name(reference.path, short=False)
    assert full is not None, "parse_reference() took it"
    return (replace(full, tag=reference.tag, digest=reference.digest),)


def _until_right(unpack: Callable[[], Unpacked], mend: Callable[[], bool], directory: str) -> Unpacked:
    """Unpack again after layers of a wrong digest were fetched anew; each place is given up once."""
    from hpcpod.images.unpacking.tree import empty_directory

    while True:
        try:
            return unpack()
        except ImageDigestMismatch:
            if not mend():
                raise
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            empty_directory(fd)
        finally:
            os.close(fd)


@contextmanager
def _blobs(directory: str, tree: str) -> Iterator[str]:
    """Where blobs wait: the directory for them, or one beside the tree that goes with the pull."""
    from hpcpod.images.sources.registry.blobs import sweep_blobs
    from hpcpod.images.unpacking.layers import write_error

    own = ""
    try:
        if not directory:
            directory = own = tempfile.mkdtemp(prefix="blobs-", dir=os.path.dirname(os.path.abspath(tree)))
        os.makedirs(directory, 0o700, exist_ok=True)
        sweep_blobs(directory)
    except OSError as error:
        raise write_error(error, directory) from None
    try:
        yield directory
    finally:
        if own:
            import shutil

            shutil.rmtree(own, ignore_errors=True)


def _check_space(blobs: str, tree: str, layers: tuple[Descriptor, ...]) -> None:
    """Refuse to fetch what the disk cannot hold: the layers, and a tree no smaller.  Raises StoreFull."""
    from hpcpod.images.sources.registry.blobs import file_name

    unique = {layer.digest: layer.size for layer in layers}
    missing = sum(n for d, n in unique.items() if not os.path.exists(f"{blobs}/{file_name(d)}"))
    same = os.stat(blobs).st_dev == os.stat(tree).st_dev
    status = os.statvfs(blobs)
    free = status.f_bavail * status.f_frsize
    needed = missing + (sum(unique.values()) if same else 0)
    if free < needed:
        raise StoreFull(
            f"{blobs}: {size(free)} free, fetching and unpacking takes more than {size(needed)} (ENOSPC)",
            hint="hpcpod image rm frees space; HPCPOD_STORE chooses another disk",
        )
