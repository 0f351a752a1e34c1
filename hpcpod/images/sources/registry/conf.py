# SPDX-License-Identifier: Apache-2.0
"""containers-registries.conf(5), version 2: what files say, alone and together; whom to ask.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hpcpod.errors import ImageReferenceError, RegistryDenied, UsageError
from hpcpod.frozen import frozen, replace
from hpcpod.images.dockername import DockerName, parse_name
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any, NoReturn

MODES = ("enforcing", "permissive", "disabled")
DIGEST_ONLY, TAG_ONLY, ALL = "digest-only", "tag-only", "all"
MIRRORS = 64
"""Mirrors of one registry, at most."""
AUTH_FILES = "containers-auth.json"
"""What credential-helpers calls the files of containers-auth.json(5)."""


@frozen
class Mirror:
    """Another place with the same content.  location: HOST[:PORT][/PATH].  pulls: ALL, or what for."""

    location: str
    insecure: bool = False
    pulls: str = ALL


@frozen
class Registry:
    """A [[registry]].  prefix: of names that it is for, or ``*.DOMAIN``.  location: instead of the prefix."""

    prefix: str
    location: str
    insecure: bool = False
    blocked: bool = False
    digest_only: bool = False
    mirrors: tuple[Mirror, ...] = ()


@frozen
class RegistriesConf:
    """What all files say.  search, mode, helpers: None where no file says it.

    aliases: short names and what they stand for; an empty text takes one away.
    """

    search: tuple[str, ...] | None = None
    mode: str = ""
    helpers: tuple[str, ...] | None = None
    registries: tuple[Registry, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()


@frozen
class Place:
    """Where a name is looked for.  host: with its port.  insecure: without TLS, or with any certificate."""

    host: str
    path: str
    tag: str = ""
    insecure: bool = False
    mirror: bool = False


def parse_conf(raw: bytes, path: str) -> RegistriesConf:
    """What a file's bytes say.  Raises UsageError, for version 1 of the format too."""
    import tomllib

    try:
        document = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UsageError(f"{shown(path)}: not TOML: {shown(str(error))}") from None
    reader = _Reader(path)
    if "registries" in document:
        raise UsageError(
            f"{shown(path)}: [registries] is version 1 of the format, which is not read",
            hint="containers-registries.conf(5) says how version 2 is written",
        )
    mode = reader.text(document, "short-name-mode", "")
    if mode and mode not in MODES:
        reader.wrong("short-name-mode", f"one of {', '.join(MODES)}", mode)
    search = reader.texts(document, "unqualified-search-registries")
    for host in search or ():
        reader.place(host, "unqualified-search-registries")
    return RegistriesConf(
        search=search,
        mode=mode,
        helpers=reader.texts(document, "credential-helpers"),
        registries=tuple(reader.registry(table) for table in reader.tables(document, "registry")),
        aliases=reader.aliases(document.get("aliases", {})),
    )


class _Reader:
    """Takes typed values out of a parsed file; complains with the place of what is wrong."""

    def __init__(self, path: str) -> None:
        self._path = path

    def wrong(self, key: str, expected: str, got: object) -> NoReturn:
        raise UsageError(f"{shown(self._path)}: {shown(key)}: expected {expected}, got {shown(repr(got))}")

    def text(self, table: dict[str, Any], key: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            self.wrong(key, "a text", value)
        return value

    def flag(self, table: dict[str, Any], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            self.wrong(key, "true or false", value)
        return value

    def texts(self, table: dict[str, Any], key: str) -> tuple[str, ...] | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.wrong(key, "a list of texts", value)
        return tuple(value)

    def tables(self, table: dict[str, Any], key: str) -> list[dict[str, Any]]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.wrong(key, f"tables [[{key}]]", value)
        return value

    def place(self, location: str, key: str) -> str:
        """HOST[:PORT][/PATH], as a name that something can be appended to."""
        if "://" in location:
            self.wrong(key, "a location without http:// or https://", location)
        found = parse_name(f"{location.rstrip('/')}/x", short=True)
        if found is None or not found.host:
            self.wrong(key, "HOST[:PORT] or HOST[:PORT]/PATH", location)
        return location.rstrip("/")

    def registry(self, table: dict[str, Any]) -> Registry:
        location = self.text(table, "location", "")
        prefix = self.text(table, "prefix", "") or location
        wildcard = prefix.startswith("*.")
        if wildcard:
            if "/" in prefix or ":" in prefix or parse_name(f"{prefix[2:]}/x", short=True) is None:
                self.wrong("prefix", "a wildcard *.DOMAIN", prefix)
        elif parse_name(prefix, short=True) is None and parse_name(f"{prefix}/x", short=True) is None:
            self.wrong("prefix", "the beginning of a name", prefix)
        if not location and not wildcard:
            location = prefix
        elif location:
            location = self._location(location)
        digest_only = self.flag(table, "mirror-by-digest-only")
        mirrors = self.tables(table, "mirror")
        if len(mirrors) > MIRRORS:
            self.wrong("mirror", f"at most {MIRRORS}", len(mirrors))
        return Registry(
            prefix=prefix.rstrip("/"),
            location=location,
            insecure=self.flag(table, "insecure"),
            blocked=self.flag(table, "blocked"),
            digest_only=digest_only,
            mirrors=tuple(self._mirror(mirror, digest_only) for mirror in mirrors),
        )

    def _location(self, location: str) -> str:
        """A location may be one image with its tag, where the prefix is one too."""
        if parse_name(location, short=True) is None:
            return self.place(location, "location")
        return location

    def _mirror(self, table: dict[str, Any], digest_only: bool) -> Mirror:
        pulls = self.text(table, "pull-from-mirror", "")
        if pulls not in ("", ALL, DIGEST_ONLY, TAG_ONLY):
            self.wrong("pull-from-mirror", f"{ALL}, {DIGEST_ONLY} or {TAG_ONLY}", pulls)
        if pulls and digest_only:
            self.wrong("pull-from-mirror", "no such key where mirror-by-digest-only is set", pulls)
        location = self._location(self.text(table, "location", ""))
        return Mirror(location, self.flag(table, "insecure"), pulls or (DIGEST_ONLY if digest_only else ALL))

    def aliases(self, table: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(table, dict):
            self.wrong("aliases", "a table", table)
        for name, value in table.items():
            short = parse_name(name, short=True)
            if short is None or short.host or short.tag or short.digest:
                self.wrong("aliases", "a short name without tag and digest", name)
            if not isinstance(value, str):
                self.wrong(f"aliases: {name}", "a text", value)
            full = parse_name(value, short=True) if value else None
            if value and (full is None or not full.host or full.tag or full.digest):
                self.wrong(f"aliases: {name}", "HOST/NAME without tag and digest", value)
        return tuple(table.items())


def merged(files: Sequence[RegistriesConf]) -> RegistriesConf:
    """What several files say together: the later one counts (containers-registries.conf.d(5))."""
    whole = RegistriesConf()
    for conf in files:
        registries = {registry.prefix: registry for registry in (*whole.registries, *conf.registries)}
        whole = replace(
            whole,
            search=whole.search if conf.search is None else conf.search,
            mode=conf.mode or whole.mode,
            helpers=conf.helpers or whole.helpers,
            registries=tuple(registries.values()),
            aliases=tuple({**dict(whole.aliases), **dict(conf.aliases)}.items()),
        )
    return whole


def registry_of(conf: RegistriesConf, name: DockerName) -> Registry | None:
    """The [[registry]] with the longest prefix that fits a name."""
    fitting = [registry for registry in conf.registries if _fits(registry.prefix, name)]
    return max(fitting, key=lambda registry: len(registry.prefix), default=None)


def _fits(prefix: str, name: DockerName) -> bool:
    if prefix.startswith("*."):
        return name.host.partition(":")[0].endswith(prefix[1:])
    text = str(name)
    return text.startswith(prefix) and text[len(prefix) : len(prefix) + 1] in ("", "/", ":", "@")


def places(conf: RegistriesConf, name: DockerName) -> tuple[Place, ...]:
    """Where a full name is looked for, in this order: mirrors, then the registry itself.

    Raises RegistryDenied where the name is blocked, UsageError where a location does not fit the name.
    """
    registry = registry_of(conf, name)
    if registry is None:
        return (Place(name.host, name.path, name.tag),)
    if registry.blocked:
        raise RegistryDenied(
            f"image {name}: {shown(registry.prefix)} is blocked",
            hint="containers-registries.conf(5) says so: blocked = true",
        )
    unwanted = TAG_ONLY if name.digest else DIGEST_ONLY
    mirrors = tuple(
        _rewritten(name, registry.prefix, mirror.location, mirror.insecure, mirror=True)
        for mirror in registry.mirrors
        if mirror.pulls != unwanted
    )
    location = registry.location or name.host
    own = _rewritten(name, registry.prefix, location, registry.insecure, mirror=False)
    return (*mirrors, own)


def _rewritten(name: DockerName, prefix: str, location: str, insecure: bool, *, mirror: bool) -> Place:
    text = str(name)
    length = len(name.host) if prefix.startswith("*.") else len(prefix)
    found = parse_name(location + text[length:], short=True)
    if found is None or not found.host:
        raise UsageError(
            f"image {name}: location {shown(location)} for {shown(prefix)} makes no name of it",
            hint="containers-registries.conf(5): location",
        )
    return Place(found.host, found.path, found.tag or name.tag, insecure, mirror)


def full_names(conf: RegistriesConf, short: DockerName) -> tuple[DockerName, ...]:
    """What a short name may stand for, in the order of trying: an alias, or the search registries.

    Nobody is asked, as the program that runs in a job has no terminal.  Raises ImageReferenceError.
    """
    alias = dict(conf.aliases).get(short.path, "")
    search = conf.search or ()
    if alias:
        return (_completed(alias, short),)
    if not search:
        raise ImageReferenceError(
            f"image {shown(str(short))}: a short name without an alias, and no registry to search",
            hint=f"docker://{shown(str(short))} is Docker Hub's; others: containers-registries.conf(5)",
        )
    if conf.mode == "enforcing" and len(search) > 1:
        raise ImageReferenceError(
            f"image {shown(str(short))}: a short name, {len(search)} registries to search: "
            f"{', '.join(map(shown, search))}",
            hint="write the registry, too: short-name-mode is enforcing (containers-registries.conf(5))",
        )
    return tuple(_completed(f"{host}/{short.path}", short) for host in search)


def _completed(full: str, short: DockerName) -> DockerName:
    name = parse_name(full, short=False)
    if name is None:
        raise ImageReferenceError(f"image {shown(str(short))}: {shown(full)} is not a name")
    return replace(name, tag=short.tag, digest=short.digest)
