# SPDX-License-Identifier: Apache-2.0
"""Files of other tools: registries.conf, auth.json, registries.d."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import ImageReferenceError, RegistryDenied, TrustUnusable, UsageError
from hpcpod.images.dockername import DockerName, parse_name
from hpcpod.images.sources.registry import lookaside
from hpcpod.images.sources.registry.authfile import (
    Credentials,
    Lookup,
    keys_for,
    look_up,
    normalised,
    parse_auth,
    parse_helper,
)
from hpcpod.images.sources.registry.conf import Place, RegistriesConf, full_names, merged, parse_conf, places
from hpcpod.images.sources.registry.files import read_auth_files, read_lookasides, read_registries
from hpcpod.images.sources.registry.keyring import helper_environment
from hpcpod.images.sources.registry.lookaside import parse_lookasides


def name(text: str) -> DockerName:
    found = parse_name(text, short=True)
    assert found is not None
    return found


def conf(text: str) -> RegistriesConf:
    return merged([parse_conf(text.encode(), "registries.conf")])


MAN = """
unqualified-search-registries = ["example.com"]
[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"
[[registry.mirror]]
location = "mirror-0.local/mirror-for-foo"
[[registry.mirror]]
location = "mirror-1.local/mirrors/foo"
insecure = true
[[registry]]
location = "registry.com"
[[registry.mirror]]
location = "mirror.registry.com"
"""
"""The example of containers-registries.conf(5)."""


def test_example_of_the_manual() -> None:
    assert places(conf(MAN), name("example.com/foo/image:latest")) == (
        Place("mirror-0.local", "mirror-for-foo/image", "latest", mirror=True),
        Place("mirror-1.local", "mirrors/foo/image", "latest", insecure=True, mirror=True),
        Place("internal.example.net", "bar/image", "latest"),
    )
    assert [place.host for place in places(conf(MAN), name("registry.com/image:latest"))] == [
        "mirror.registry.com",
        "registry.com",
    ]
    assert places(conf(MAN), name("example.com/food/image")) == (Place("example.com", "food/image"),)


@pytest.mark.parametrize(
    ("prefix", "text", "fits"),
    [
        ("*.example.com", "a.b.example.com/x", True),
        ("*.example.com", "a.example.com:5000/x", True),
        ("*.example.com", "example.com/x", False),
        ("*.example.com", "badexample.com/x", False),
        ("a.io", "a.io/x", True),
        ("a.io", "a.io:5000/x", True),
        ("a.io", "a.iox/x", False),
        ("a.io/n", "a.io/n/x", True),
        ("a.io/n", "a.io/nn", False),
        ("a.io/n:1", "a.io/n:1", True),
        ("a.io/n:1", "a.io/n:12", False),
    ],
)
def test_prefixes(prefix: str, text: str, fits: bool) -> None:
    found = conf(f'[[registry]]\nprefix = "{prefix}"\nlocation = "x.io/y"\nblocked = true\n')
    try:
        places(found, name(text))
    except RegistryDenied:
        assert fits
    else:
        assert not fits


def test_longest_prefix_counts_and_wildcards_rewrite_nothing() -> None:
    found = conf('[[registry]]\nprefix = "*.io"\ninsecure = true\n[[registry]]\nlocation = "a.io/n"\n')
    assert places(found, name("a.io/m/x")) == (Place("a.io", "m/x", insecure=True),)
    assert places(found, name("a.io/n/x")) == (Place("a.io", "n/x"),)


@pytest.mark.parametrize(
    ("pulls", "text", "count"),
    [("digest-only", "a.io/x:1", 1), ("tag-only", "a.io/x:1", 2), ("all", "a.io/x:1", 2)]
    + [(p, "a.io/x@sha256:" + "0" * 64, n) for p, n in (("digest-only", 2), ("tag-only", 1), ("all", 2))],
)
def test_pull_from_mirror(pulls: str, text: str, count: int) -> None:
    found = conf(
        '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\nlocation = "m.io"\n'
        f'pull-from-mirror = "{pulls}"\n'
    )
    assert len(places(found, name(text))) == count


@pytest.mark.parametrize(
    "text",
    [
        "[registries.search]\nregistries = ['a.io']\n",
        "x = [",
        'short-name-mode = "maybe"',
        "unqualified-search-registries = 'a.io'",
        'unqualified-search-registries = ["https://a.io"]',
        '[[registry]]\nprefix = "a.*.io"',
        '[[registry]]\nprefix = "*.a.io/x"',
        '[[registry]]\nlocation = "http://a.io"',
        '[[registry]]\nlocation = "a.io"\ninsecure = "true"',
        "[[registry]]\ninsecure = true",
        "[registry]\nlocation = 'a.io'",
        '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\ninsecure = true',
        '[[registry]]\nlocation = "a.io"\nmirror-by-digest-only = true\n[[registry.mirror]]\n'
        'location = "m.io"\npull-from-mirror = "all"',
        '[aliases]\n"a.io/x" = "b.io/x"',
        '[aliases]\nx = "x"',
        '[aliases]\nx = "a.io/x:1"',
        "[aliases]\nx = 1",
    ],
)
def test_wrong_conf(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        conf(text)
    assert "registries.conf" in caught.value.message and caught.value.message.isprintable()


@given(st.text(max_size=200))
def test_conf_takes_anything(text: str) -> None:
    try:
        conf(text)
    except UsageError as error:
        assert "\n" not in error.lines().strip().partition("\n")[0]


def test_later_files_count() -> None:
    first = parse_conf(
        b'unqualified-search-registries = ["a.io"]\n[aliases]\nx = "a.io/x"\ny = "a.io/y"\n', "1"
    )
    second = parse_conf(b'short-name-mode = "enforcing"\n[aliases]\nx = "b.io/x"\ny = ""\n', "2")
    whole = merged([first, second])
    assert whole.search == ("a.io",) and whole.mode == "enforcing"
    assert full_names(whole, name("x:1")) == (name("b.io/x:1"),)
    assert full_names(whole, name("y")) == (name("a.io/y"),)
    assert merged([whole, parse_conf(b"unqualified-search-registries = []", "3")]).search == ()


def test_short_names() -> None:
    two = 'unqualified-search-registries = ["a.io", "docker.io"]\n'
    assert full_names(conf(two), name("x")) == (name("a.io/x"), name("docker.io/library/x"))
    for text in ("", f'{two}short-name-mode = "enforcing"'):
        with pytest.raises(ImageReferenceError):
            full_names(conf(text), name("x"))


# --------------------------------------------------------------------------- files of a user


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_of_registries(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    base = tmp_path / ".config/containers"
    write(base / "registries.conf", 'unqualified-search-registries = ["a.io"]')
    assert read_registries(environment).search == ("a.io",)
    write(base / "registries.conf.d/2.conf", 'unqualified-search-registries = ["c.io"]')
    write(base / "registries.conf.d/1.conf", 'unqualified-search-registries = ["b.io"]')
    write(base / "registries.conf.d/3.txt", "not read")
    assert read_registries(environment).search == ("c.io",)
    named = write(tmp_path / "named", 'unqualified-search-registries = ["d.io"]')
    assert read_registries({**environment, "CONTAINERS_REGISTRIES_CONF": str(named)}).search == ("d.io",)
    with pytest.raises(UsageError, match="not there"):
        read_registries({**environment, "CONTAINERS_REGISTRIES_CONF": f"{named}-not"})


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_files_of_credentials(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    paths = {
        "1": "run/containers/auth.json",
        "2": ".config/containers/auth.json",
        "3": ".docker/config.json",
        "4": ".dockercfg",
    }
    for user, path in paths.items():
        auths = {"a.io": auth(user, "p")}
        write(tmp_path / path, json.dumps(auths if user == "4" else {"auths": auths}))
    found = [look_up(file, "a.io", "x") for _, file in read_auth_files(environment)]
    assert found == [Lookup(Credentials(user, "p")) for user in paths]
    (tmp_path / "docker").mkdir()
    moved = {**environment, "DOCKER_CONFIG": str(tmp_path / "docker")}
    assert len(read_auth_files(moved)) == 3
    named = {**environment, "REGISTRY_AUTH_FILE": str(tmp_path / paths["3"])}
    assert [path for path, _ in read_auth_files(named)] == [str(tmp_path / paths["3"])]


def test_longest_key_counts() -> None:
    assert keys_for("a.io", "n/m/x") == ("a.io/n/m/x", "a.io/n/m", "a.io/n", "a.io")
    auths = {"a.io": auth("host", "1"), "a.io/n": auth("space", "2"), "docker.io": {}}
    auths["https://index.docker.io/v1/"] = auth("hub", "3:4")
    file = parse_auth(
        json.dumps({"auths": auths, "credsStore": "s", "credHelpers": {"b.io": "h"}}).encode(), "f"
    )
    assert look_up(file, "a.io", "n/m/x") == Lookup(Credentials("space", "2"))
    assert look_up(file, "a.io", "nn/x") == Lookup(Credentials("host", "1"))
    assert look_up(file, "docker.io", "library/x") == Lookup(Credentials("hub", "3:4"))
    assert look_up(file, "b.io", "x") == Lookup(helper="h", server="b.io")
    assert look_up(file, "c.io", "x") == Lookup(helper="s", server="c.io")


@pytest.mark.parametrize(
    "key", ["index.docker.io", "https://index.docker.io/v1/", "https://docker.io", "docker.io/"]
)
def test_hub_has_many_names(key: str) -> None:
    assert normalised(key) == "docker.io"


SECRET = "hunter2 and more"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"auths": []}',
        json.dumps({"auths": {"a.io": {"auth": f"{SECRET}!"}}}),
        json.dumps({"auths": {"a.io": {"auth": base64.b64encode(SECRET.encode()).decode()}}}),
        json.dumps({"auths": {"a.io": auth("me", f"{SECRET}\nX: y")}}),
        json.dumps({"credsStore": "../../bin/sh"}),
        json.dumps({"credHelpers": {"a.io": "x y"}}),
    ],
)
def test_wrong_auth_files_show_no_secret(content: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_auth(content.encode(), "auth.json")
    assert "hunter2" not in caught.value.lines()
    assert base64.b64encode(SECRET.encode()).decode() not in caught.value.lines()


def test_credentials_are_not_shown() -> None:
    assert SECRET not in repr(Lookup(Credentials("me", SECRET)))
    assert SECRET not in repr(parse_auth(json.dumps({"auths": {"a.io": auth("m", SECRET)}}).encode(), "f"))


def test_answers_of_helpers() -> None:
    assert parse_helper(b'{"Username": "u", "Secret": "s"}', "x") == Credentials("u", "s")
    assert parse_helper(b'{"Username": "<token>", "Secret": "s"}', "x") == Credentials(identity="s")
    for answer in (b"", b"{}", b"hunter2", b'{"Username": "u", "Secret": "a\\nb"}'):
        with pytest.raises(UsageError) as caught:
            parse_helper(answer, "x")
        assert "hunter2" not in caught.value.message


def test_environment_of_helpers() -> None:
    given_all = {"HOME": "/h", "AWS_PROFILE": "p", "LD_PRELOAD": "x", "PYTHONPATH": "y", "PATH": "/bin"}
    assert helper_environment(given_all) == {"HOME": "/h", "AWS_PROFILE": "p", "PATH": "/bin"}


# --------------------------------------------------------------------------- registries.d


YAML = b"""
default-docker:
  lookaside: https://default.example/sigs/
docker:
  a.io:
    sigstore: file:///var/sigs
  a.io/n/x:1:
    lookaside: http://one.example
  a.io/unsigned:
    use-sigstore-attachments: true
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.io/m", "file:///var/sigs"),
        ("a.io/n/x:1", "http://one.example"),
        ("a.io/n/x:2", "file:///var/sigs"),
        ("a.io/unsigned/x", ""),
        ("b.io/x", "https://default.example/sigs"),
        ("a.io:5000/x", "https://default.example/sigs"),
    ],
)
def test_lookasides(text: str, expected: str) -> None:
    assert (
        lookaside.lookaside_of(parse_lookasides(YAML, "x.yaml"), name(text), "file:///built-in") == expected
    )


def test_built_in_lookaside_where_nothing_is_said() -> None:
    found = parse_lookasides(b"docker: {a.io: {lookaside: 'https://a'}}", "x.yaml")
    assert lookaside.lookaside_of(found, name("b.io/x"), "file:///built-in") == "file:///built-in"
    assert lookaside.signature_url("https://s", name("a.io:1/n/x:1"), "sha256:ab", 2) == (
        "https://s/a.io:1/n/x@sha256=ab/signature-2"
    )


@pytest.mark.parametrize(
    "text",
    [
        b"[",
        b"- a",
        b"docker: [a]",
        b"docker: {a.io: x}",
        b"docker: {a.io: {lookaside: ftp://x}}",
        b"docker: {a.io: {lookaside: 'https://u:p@x'}}",
        b"docker: {a.io: {lookaside: 7}}",
        b"docker: {1: {}}",
        b"docker: {a.io: {}, a.io: {}}",
        b"a: &a [x]\ndocker: *a",
        b"a: " + b"[" * 200 + b"]" * 200,
        b"a: !!python/object/apply:os.system ['true']",
        b"\xff",
        b"? [a]\n: b",
        b"a: 2026-99-99",
    ],
)
def test_wrong_lookasides(text: bytes) -> None:
    with pytest.raises(TrustUnusable) as caught:
        parse_lookasides(text, "x.yaml")
    assert caught.value.message.startswith("x.yaml: ") and caught.value.message.isprintable()


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_lookasides_take_anything(raw: bytes) -> None:
    try:
        parse_lookasides(raw, "x.yaml")
    except TrustUnusable as error:
        assert error.message.isprintable()


def test_a_scope_stands_in_one_file(tmp_path: Path) -> None:
    base = tmp_path / ".config/containers/registries.d"
    write(base / "1.yaml", "docker: {a.io: {lookaside: 'https://a'}}")
    write(base / "2.yaml", "docker: {b.io: {lookaside: 'https://b'}}")
    assert dict(read_lookasides({"HOME": str(tmp_path)}).scopes) == {"a.io": "https://a", "b.io": "https://b"}
    write(base / "3.yaml", "docker: {a.io: {}}")
    with pytest.raises(TrustUnusable, match="one of it in all files"):
        read_lookasides({"HOME": str(tmp_path)})


def test_scopes() -> None:
    found = name("a.b.example.com:5000/n/m/x:1")
    assert lookaside.scopes_of(found)[:2] == ("a.b.example.com:5000/n/m/x:1", "a.b.example.com:5000/n/m/x")
    assert lookaside.scopes_of(found)[-1] == "a.b.example.com:5000"
    assert lookaside.wildcards_of(found) == ("*.b.example.com", "*.example.com", "*.com")
    assert lookaside.wildcards_of(name("127.0.0.1:5000/x")) == ()
