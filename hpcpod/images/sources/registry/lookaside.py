# SPDX-License-Identifier: Apache-2.0
"""containers-registries.d(5): where simple signatures lie that are kept beside a registry."""

from __future__ import annotations

from collections.abc import Sequence

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import frozen
from hpcpod.images.dockername import DockerName
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import NoReturn

KEYS = ("lookaside", "sigstore")
"""The key, and what older versions called it."""
SCHEMES = ("file:///", "https://", "http://")
DEPTH = 16
NODES = 20_000


@frozen
class Lookasides:
    """What a file says, or several.  default: URL, None where no default-docker is.  scopes: URL by scope.

    An empty URL says that there are no signatures.
    """

    default: str | None = None
    scopes: tuple[tuple[str, str], ...] = ()


def parse_lookasides(raw: bytes, path: str) -> Lookasides:
    """What a file's bytes say.  Raises TrustUnusable."""
    document = _yaml(raw, path)
    if document is None:
        return Lookasides()
    if not isinstance(document, dict):
        _wrong(path, "the file", "a mapping")
    default = document.get("default-docker")
    scopes = document.get("docker")
    if scopes is not None and not isinstance(scopes, dict):
        _wrong(path, "docker", "a mapping")
    found = []
    for scope, section in (scopes or {}).items():
        if not isinstance(scope, str):
            _wrong(path, "docker", "names of registries or images")
        found.append((scope, _url(section, f"docker: {scope}", path)))
    return Lookasides(None if default is None else _url(default, "default-docker", path), tuple(found))


def _yaml(raw: bytes, path: str) -> object:
    """The document, by the safe loader.  Aliases are refused: they make any size of few bytes."""
    import yaml

    try:
        depth = 0
        for nodes, event in enumerate(yaml.parse(raw, Loader=yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                _wrong(path, "the file", "no aliases (*name)")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > DEPTH or nodes > NODES:
                _wrong(path, "the file", f"at most {DEPTH} levels and {NODES} parts")
        return yaml.load(raw, Loader=_strict_loader())  # noqa: S506 - a subclass of the safe one
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrustUnusable(f"{shown(path)}: not YAML: {shown(first)}") from None


def _strict_loader() -> type:
    """The safe loader, with an error for keys that occur twice: one of them would silently not count."""
    import yaml

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses duplicate keys."""

        def construct_mapping(self, node, deep=False):  # type: ignore[no-untyped-def]
            """As the safe loader, after a look at the keys."""
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(names)) != len(names):
                raise yaml.YAMLError("a key occurs twice")
            try:
                return super().construct_mapping(node, deep)
            except TypeError as error:  # a key that is a list
                raise yaml.YAMLError(str(error)) from None

    return Strict


def _url(section: object, what: str, path: str) -> str:
    if section is None:
        return ""
    if not isinstance(section, dict):
        _wrong(path, what, "a mapping")
    value = next((section[key] for key in KEYS if section.get(key) is not None), "")
    if not isinstance(value, str) or (value and not value.startswith(SCHEMES)):
        _wrong(path, f"{what}: {KEYS[0]}", "a URL that begins with file:///, https:// or http://")
    if not value.isascii() or not value.isprintable() or "@" in value or "?" in value or "#" in value:
        _wrong(path, f"{what}: {KEYS[0]}", "a URL without user, query and fragment")
    return value.rstrip("/")


def _wrong(path: str, what: str, expected: str) -> NoReturn:
    raise TrustUnusable(f"{shown(path)}: {shown(what)}: expected {expected}")


def merged(files: Sequence[tuple[str, Lookasides]]) -> Lookasides:
    """What several files say together.  Raises TrustUnusable where two speak of the same scope."""
    default: str | None = None
    scopes: dict[str, str] = {}
    for path, file in files:
        if file.default is not None and default is not None:
            _wrong(path, "default-docker", "one of it in all files of the directory")
        default = file.default if file.default is not None else default
        for scope, url in file.scopes:
            if scope in scopes:
                _wrong(path, f"docker: {scope}", "one of it in all files of the directory")
            scopes[scope] = url
    return Lookasides(default, tuple(scopes.items()))


def scopes_of(name: DockerName) -> tuple[str, ...]:
    """What rules may call an image of a registry, the most precise first; without the wildcards of policies.

    With its tag or digest, its repository, namespaces, its host with the port (containers-registries.d(5)).
    """
    repository = f"{name.host}/{name.path}"
    exact = f"{repository}@{name.digest}" if name.digest else f"{repository}:{name.tag or 'latest'}"
    parts = repository.split("/")
    return (exact, *("/".join(parts[:count]) for count in range(len(parts), 0, -1)))


def wildcards_of(name: DockerName) -> tuple[str, ...]:
    """What follows in containers-policy.json(5): ``*.`` before each domain above the host, without port."""
    host = name.host.partition(":")[0]
    if host.startswith("[") or host.replace(".", "").isdigit():
        return ()
    labels = host.split(".")
    return tuple(f"*.{'.'.join(labels[count:])}" for count in range(1, len(labels)))


def lookaside_of(lookasides: Lookasides, name: DockerName, built_in: str) -> str:
    """The URL below which an image's signatures lie; empty for none.  built_in: where no file says one."""
    known = dict(lookasides.scopes)
    for scope in scopes_of(name):
        if scope in known:
            return known[scope]
    return built_in if lookasides.default is None else lookasides.default


def signature_url(base: str, name: DockerName, digest: str, number: int) -> str:
    """Where the number-th signature of a digest lies, counted from 1 (containers-signature(5), storage)."""
    algorithm, _, encoded = digest.partition(":")
    return f"{base}/{name.host}/{name.path}@{algorithm}={encoded}/signature-{number}"
