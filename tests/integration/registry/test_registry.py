# SPDX-License-Identifier: Apache-2.0
"""Images of a real registry: transports, ways to log in, formats, names, places."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import (
    ImageDigestMismatch,
    ImageNotFound,
    ImagePlatformMismatch,
    ImageReferenceError,
    RegistryDenied,
    RegistryFailed,
)
from hpcpod.model import Platform
from tests.integration.registry.conftest import LARGE, TREE, conf, log_in
from tests.testbed.authority import Authority
from tests.testbed.faulty import Faulty
from tests.testbed.layouts import INDEX, MANIFEST, descriptor, digest, file, image, write_files, write_layout
from tests.testbed.pulls import AMD64, Puller, Told
from tests.testbed.registry import USER, Registry, write_home

pytestmark = pytest.mark.needs("registry")


@pytest.fixture(scope="module", params=["none", "basic", "token"])
def registry(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    layout: Path,
) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry") / "r", authority, request.param) as found:
        for name in ("gzip", "zstd", "none"):
            found.push(layout, f"ns/image:{name}", tag=name)
        found.push(layout, "ns/image:docker", "--format=v2s2", tag="gzip")
        yield found


@pytest.mark.parametrize("name", ["gzip", "zstd", "none", "docker"])
def test_image(name: str, registry: Registry, puller: Puller) -> None:
    log_in(puller, registry)
    pulled = puller.pull(f"docker://{registry.host}/ns/image:{name}")
    assert pulled.error is None, pulled.error
    assert pulled.tree == TREE
    assert puller.kept() == {}
    assert pulled.told.bytes > 3_000_000
    again = puller.pull(f"docker://{registry.host}/ns/image@{pulled.digest}")
    assert (again.digest, again.tree) == (pulled.digest, TREE)


def test_without_credentials(registry: Registry, puller: Puller) -> None:
    log_in(puller, registry, login=False)
    pulled = puller.pull(f"docker://{registry.host}/ns/image:gzip")
    if registry.auth == "none":
        assert pulled.tree == TREE
    else:
        assert type(pulled.error) is RegistryDenied, pulled.error


def test_wrong_password(registry: Registry, puller: Puller) -> None:
    log_in(puller, registry)
    path = puller.home / ".config/containers/auth.json"
    entry = {"username": USER, "password": "swordfish of 1944"}
    path.write_text(json.dumps({"auths": {registry.host: entry}}))
    error = puller.pull(f"docker://{registry.host}/ns/image:gzip").error
    if registry.auth == "none":
        assert error is None
    else:
        assert type(error) is RegistryDenied
        assert "swordfish" not in str(error)


def test_what_is_not_there(registry: Registry, puller: Puller) -> None:
    log_in(puller, registry)
    error = puller.pull(f"docker://{registry.host}/ns/image:other").error
    assert type(error) is ImageNotFound
    assert "MANIFEST_UNKNOWN" in error.message
    error = puller.pull(f"docker://{registry.host}/ns/other:1").error
    assert type(error) is ImageNotFound
    error = puller.pull(f"docker://{registry.host}/ns/image@{digest(b'x')}").error
    assert type(error) is ImageNotFound


def test_certificate_of_nobody(registry: Registry, puller: Puller) -> None:
    log_in(puller, registry)
    shutil.rmtree(puller.home / ".config/containers/certs.d")
    error = puller.pull(f"docker://{registry.host}/ns/image:gzip").error
    assert type(error) is RegistryFailed
    assert "certificate is not accepted" in error.message and "certs.d" in str(error.hint)
    assert puller.pull(f"docker://{registry.host}/ns/image:gzip", insecure=frozenset({"http"})).error
    pulled = puller.pull(f"docker://{registry.host}/ns/image:gzip", insecure=frozenset({"tls"}))
    assert pulled.tree == TREE


# --------------------------------------------------------------------------- names and places


@pytest.fixture
def insecure(plain_registry: Registry, puller: Puller) -> str:
    """The plain registry's host, which the puller may speak to without TLS."""
    conf(puller, f'[[registry]]\nlocation = "{plain_registry.host}"\ninsecure = true\n')
    return plain_registry.host


def test_registry_without_tls(plain_registry: Registry, insecure: str, puller: Puller) -> None:
    reference = f"docker://{insecure}/a/image:1"
    assert puller.pull(reference).tree == TREE
    conf(puller, "")
    error = puller.pull(reference).error
    assert type(error) is RegistryFailed and "TLS" in error.message, error
    assert puller.pull(reference, insecure=frozenset({"http"})).tree == TREE
    assert puller.pull(reference, insecure=frozenset({"tls"})).error


def test_location_and_names_in_messages(plain_registry: Registry, puller: Puller) -> None:
    conf(
        puller,
        f'[[registry]]\nprefix = "images.example/team"\nlocation = "{plain_registry.host}/a"\n'
        "insecure = true\n",
    )
    pulled = puller.pull("docker://images.example/team/image:1")
    assert pulled.tree == TREE
    with puller.source("docker://images.example/team/image:1", Told()) as source:
        subject = source.subject(AMD64)
    assert subject.identity == "images.example/team/image:1"
    assert subject.scopes == (
        "images.example/team/image:1",
        "images.example/team/image",
        "images.example/team",
        "images.example",
        "*.example",
    )


def test_short_names(plain_registry: Registry, puller: Puller) -> None:
    host = plain_registry.host
    table = f'[[registry]]\nlocation = "{host}"\ninsecure = true\n'
    conf(puller, f'unqualified-search-registries = ["{host}"]\n{table}')
    assert puller.pull("a/image:1").tree == TREE
    assert type(puller.pull("a/other:1").error) is ImageNotFound
    conf(puller, f'{table}\n[aliases]\n"tool" = "{host}/a/image"\n')
    assert puller.pull("tool:1").tree == TREE
    conf(puller, table)
    assert type(puller.pull("a/image:1").error) is ImageReferenceError
    two = f'unqualified-search-registries = ["{host}", "127.0.0.1:1"]\n'
    conf(puller, f'{two}short-name-mode = "enforcing"\n{table}')
    assert type(puller.pull("a/image:1").error) is ImageReferenceError
    conf(puller, f"{two}{table}")
    assert puller.pull("a/image:1").tree == TREE


def test_registry_that_is_down_does_not_give_a_short_name_away(
    plain_registry: Registry, puller: Puller
) -> None:
    host = plain_registry.host
    conf(
        puller,
        f'unqualified-search-registries = ["127.0.0.1:1", "{host}"]\n'
        f'[[registry]]\nlocation = "{host}"\ninsecure = true\n',
    )
    error = puller.pull("a/image:1").error
    assert type(error) is RegistryFailed and "127.0.0.1:1" in error.message


def test_blocked(plain_registry: Registry, puller: Puller) -> None:
    conf(puller, f'[[registry]]\nlocation = "{plain_registry.host}"\nblocked = true\n')
    error = puller.pull(f"docker://{plain_registry.host}/a/image:1").error
    assert type(error) is RegistryDenied and "blocked" in error.message


def test_mirror_by_digest_only(plain_registry: Registry, authority: Authority, puller: Puller) -> None:
    with Faulty(plain_registry.host, authority.server("mirror")) as mirror:
        write_home(puller.home, authority, mirror.host)
        text = (
            f'[[registry]]\nlocation = "{plain_registry.host}"\ninsecure = true\n'
            "mirror-by-digest-only = true\n"
            f'[[registry.mirror]]\nlocation = "{mirror.host}"\n'
        )
        conf(puller, text)
        pulled = puller.pull(f"docker://{plain_registry.host}/a/image:1")
        assert pulled.tree == TREE and not mirror.asked
        assert puller.pull(f"docker://{plain_registry.host}/a/image@{pulled.digest}").tree == TREE
        assert mirror.count("/blobs/") == 4


# --------------------------------------------------------------------------- indexes


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A layout of one index for two architectures, with the digests that matter."""
    path = tmp_path_factory.mktemp("index") / "layout"
    images = {name: image(file(b"arch", name.encode()), architecture=name) for name in ("amd64", "arm64")}
    manifests = {name: each.blobs() for name, each in images.items()}
    entries = [
        descriptor(manifest, MANIFEST, platform={"os": "linux", "architecture": name})
        for name, (manifest, _) in manifests.items()
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    blobs = {digest(index): index}
    for _, found in manifests.values():
        blobs |= found
    write_files(path, {"schemaVersion": 2, "manifests": [descriptor(index, INDEX)]}, blobs)
    return {"path": path, "index": digest(index), **{n: digest(m) for n, (m, _) in manifests.items()}}


def test_index(several: dict[str, Any], plain_registry: Registry, insecure: str, puller: Puller) -> None:
    plain_registry.push(several["path"], "a/index:1", "--all")
    told = Told()
    for reference in (f"docker://{insecure}/a/index:1", f"docker://{insecure}/a/index@{several['index']}"):
        pulled = puller.pull(reference)
        assert (pulled.digest, pulled.tree) == (several["amd64"], {"arch": b"amd64"})
        with puller.source(reference, told) as source:
            subject = source.subject(Platform("linux", "arm64"))
            assert (subject.digest, subject.within) == (several["arm64"], (several["index"],))
            with pytest.raises(ImagePlatformMismatch, match="linux/amd64, linux/arm64"):
                source.find(Platform("linux", "riscv64"))
    with puller.source(f"docker://{insecure}/a/index@{several['arm64']}", told) as source:
        assert source.find(AMD64) == several["arm64"]
        with pytest.raises(ImagePlatformMismatch):
            source.describe(AMD64)


# --------------------------------------------------------------------------- streams


def test_finding_asks_once(plain_registry: Registry, authority: Authority, puller: Puller) -> None:
    with Faulty(plain_registry.host, authority.server("counting")) as proxy:
        write_home(puller.home, authority, proxy.host)
        with puller.source(f"docker://{proxy.host}/a/image:1", Told()) as source:
            source.find(AMD64)
            source.find(AMD64)
            assert len(proxy.asked) == 1
            source.describe(AMD64)
            assert [asked.path.split("/")[4] for asked in proxy.asked] == ["manifests", "blobs"]


def test_layer_is_unpacked_while_it_arrives(
    plain_registry: Registry, authority: Authority, puller: Puller, tmp_path: Path
) -> None:
    """The second half of the image is sent only after its first file is on the disk."""
    out = tmp_path / "out"
    out.mkdir()
    seen = threading.Event()
    from tests.testbed.webserver import Answer, Asked, Handler

    def halves(asked: Asked, good: Answer) -> Any:
        def talk(handler: Handler) -> None:
            handler.head(good)
            handler.wfile.write(good.body[:2_000_000])
            handler.wfile.flush()
            until = time.monotonic() + 10
            while time.monotonic() < until and not (out / "large").exists():
                time.sleep(0.01)
            if (out / "large").exists():
                seen.set()
            handler.wfile.write(good.body[2_000_000:])

        return talk

    with Faulty(plain_registry.host, authority.server("halves")) as proxy:
        write_home(puller.home, authority, proxy.host)
        proxy.do(LARGE, halves)
        from hpcpod.images.sources.registry.patience import DEFAULT_PATIENCE

        with puller.source(f"docker://{proxy.host}/a/image:1", Told(), DEFAULT_PATIENCE) as source:
            source.describe(AMD64)
            source.unpack(str(out), Told())
    assert seen.is_set()


def test_proxy(tmp_path: Path, authority: Authority, layout: Path, puller: Puller) -> None:
    """A registry that only the proxy can find; with credentials for the proxy, which nobody else sees."""
    with Registry(tmp_path / "registry", authority, hosts="DNS:registry.test") as registry:
        write_home(puller.home, authority, f"registry.test:{registry.port}")
        with Tunnel() as tunnel:
            tunnel.hosts["registry.test"] = "127.0.0.1"
            reference = f"docker://registry.test:{registry.port}/ns/image:1"
            assert type(puller.pull(reference).error) is RegistryFailed
            puller.environment["HTTPS_PROXY"] = f"http://me:s%20cret@127.0.0.1:{tunnel.port}"
            assert type(puller.pull(reference).error) is ImageNotFound
            assert tunnel.asked and all("Basic bWU6cyBjcmV0" in head for head in tunnel.asked)
            puller.environment["NO_PROXY"] = ".test"
            assert type(puller.pull(reference).error) is RegistryFailed


class Tunnel:
    """An HTTP proxy that knows CONNECT.  hosts: what names mean for it.  A context manager."""

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}
        self.asked: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Tunnel:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.asked.append(head.decode())
            host, _, port = head.split()[1].decode().rpartition(":")
            server = socket.create_connection((self.hosts[host], int(port)))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_client_certificate(
    plain_registry: Registry, authority: Authority, puller: Puller, tmp_path: Path
) -> None:
    context = authority.server("strict")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    with Faulty(plain_registry.host, context) as proxy:
        write_home(puller.home, authority, proxy.host)
        reference = f"docker://{proxy.host}/a/image:1"
        assert type(puller.pull(reference).error) is RegistryFailed
        directory = puller.home / ".config/containers/certs.d" / proxy.host
        certificate, key = authority.certify("client")
        shutil.copy(certificate, directory / "me.cert")
        error = puller.pull(reference).error
        assert error and "me.key" in error.message
        shutil.copy(key, directory / "me.key")
        assert puller.pull(reference).tree == TREE


def test_layers_that_occur_twice(
    tmp_path: Path, plain_registry: Registry, insecure: str, puller: Puller
) -> None:
    tar = file(b"same", b"x" * 1000)
    plain_registry.push(write_layout(tmp_path / "twice", image(tar, tar, tar)), "a/twice:1")
    assert puller.pull(f"docker://{insecure}/a/twice:1").tree == {"same": b"x" * 1000}


def test_diff_id_that_is_wrong_is_the_image_s_own_fault(
    tmp_path: Path, plain_registry: Registry, insecure: str, puller: Puller
) -> None:
    def bend(config: dict[str, Any]) -> dict[str, Any]:
        config["rootfs"]["diff_ids"] = [digest(b"other")]
        return config

    layout = write_layout(tmp_path / "bent", image(file(b"a", b"x"), bend_config=bend))
    plain_registry.push(layout, "a/bent:1")
    error = puller.pull(f"docker://{insecure}/a/bent:1").error
    assert type(error) is ImageDigestMismatch and "diff_id" in error.message
