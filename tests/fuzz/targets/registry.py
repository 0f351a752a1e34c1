# SPDX-License-Identifier: Apache-2.0
"""What registries answer, and files that say how they are reached: values that keep rules, or a refusal.

The first byte says which parser is meant.
"""

from __future__ import annotations

from collections.abc import Callable

from hpcpod.errors import HpcpodError, ImageInvalid, TrustUnusable, UsageError
from hpcpod.images.dockername import DockerName, parse_name
from hpcpod.images.sources.reference import is_digest
from hpcpod.images.sources.registry.attachments import parse_attachments, parse_referrers
from hpcpod.images.sources.registry.authfile import is_helper, look_up, parse_auth, parse_helper
from hpcpod.images.sources.registry.challenge import (
    content_range,
    parse_challenges,
    retry_after,
)
from hpcpod.images.sources.registry.conf import full_names, merged, parse_conf, places
from hpcpod.images.sources.registry.lookaside import lookaside_of, parse_lookasides, signature_url
from hpcpod.images.sources.registry.proxies import excluded
from hpcpod.images.sources.registry.signatures import next_page
from hpcpod.images.sources.registry.trouble import refusal
from tests.fuzz.target import LONGEST, SMALL, Broken, Target

NAME = DockerName("a.io", "n/x", "1")
SHORT = DockerName("", "x", "1")
SECRET = "hunter2"


def header(data: bytes) -> None:
    """What stands in the heads of answers."""
    text = data.decode("latin-1")
    for challenge in parse_challenges(text):
        if not challenge.scheme or challenge.scheme != challenge.scheme.lower():
            raise Broken(repr(challenge))
    seconds = retry_after(text, 1e9)
    if seconds is not None and not seconds >= 0:
        raise Broken(f"{seconds} seconds")
    span = content_range(text)
    if span is not None and not 0 <= span[0] <= span[1]:
        raise Broken(repr(span))
    page = next_page(text, "n/x", "D")
    if page and not page.startswith("referrers/D?"):
        raise Broken(page)
    excluded(text, "a.io", 443)
    if not refusal(404, {"content-type": text}, data, None).text.isprintable():
        raise Broken("text")


def conf(data: bytes) -> None:
    """registries.conf."""
    whole = merged([parse_conf(data, "f")])
    for name in full_names(whole, SHORT):
        if not name.host or name.tag != "1":
            raise Broken(repr(name))
    for place in places(whole, NAME):
        if parse_name(f"{place.host}/{place.path}", short=True) is None:
            raise Broken(repr(place))


def auth(data: bytes) -> None:
    """auth.json."""
    for legacy in (False, True):
        found = look_up(parse_auth(data, "f", legacy=legacy), "a.io", "n/x")
        if found and found.helper and not is_helper(found.helper):
            raise Broken(found.helper)


def lookasides(data: bytes) -> None:
    """registries.d."""
    url = signature_url(lookaside_of(parse_lookasides(data, "f"), NAME, ""), NAME, "sha256:00", 1)
    if "@sha256=00/signature-1" not in url or not url.isprintable():
        raise Broken(url)


def attachments(data: bytes) -> None:
    """Manifests of signatures, and lists of them."""
    for layer in parse_attachments(data, "f", SMALL).layers:
        if not is_digest(layer.digest):
            raise Broken(layer.digest)


PARSERS: dict[int, Callable[[bytes], object]] = {
    ord("h"): header,
    ord("c"): conf,
    ord("a"): auth,
    ord("p"): lambda data: parse_helper(data, "x"),
    ord("y"): lookasides,
    ord("s"): attachments,
    ord("r"): lambda data: parse_referrers(data, "f", SMALL),
}


def run(data: bytes) -> None:
    """Parse it once."""
    parser = PARSERS.get(data[0]) if data else None
    if parser is None:
        return
    try:
        parser(data[1:])
    except (UsageError, TrustUnusable, ImageInvalid) as error:
        check(error)
    except HpcpodError as error:
        if error.slug not in ("registry-denied", "image-limit"):  # blocked; too large
            raise Broken(error.slug) from error
        check(error)


def check(error: HpcpodError) -> None:
    """A refusal is one printable line and a hint, and shows no password."""
    lines = error.lines().splitlines()
    if len(lines) > 2 or not all(map(str.isprintable, lines)) or len(error.message) > LONGEST:
        raise Broken(error.lines())
    if SECRET in error.lines():
        raise Broken("shows a password")


SEEDS = {
    "challenge": b'hBearer realm="https://a/t",service="s",scope="repository:a/b:pull", Basic realm=x',
    "seconds": b"h120",
    "date": b"hSun, 06 Nov 1994 08:49:37 GMT",
    "range": b"hbytes 5-9/10",
    "link": b'h</v2/n/x/referrers/D?n=1>; rel="next"',
    "no proxy": b"h10.0.0.0/8,*.io:443,[::1]:1",
    "conf": b'cunqualified-search-registries = ["b.io"]\nshort-name-mode = "enforcing"\n[[registry]]\n'
    b'prefix = "*.io"\ninsecure = true\n[[registry.mirror]]\nlocation = "m.io/p"\npull-from-mirror = "all"\n'
    b'[aliases]\nx = "c.io/x"\n',
    "auth": b'a{"auths": {"https://a.io/v1/": {"auth": "bWU6aHVudGVyMg=="}}, "credHelpers": {"b.io": "h"}}',
    "helper": b'p{"Username": "u", "Secret": "s"}',
    "lookaside": b"ydefault-docker:\n  lookaside: file:///s\ndocker:\n  a.io/n:\n    sigstore: https://a.io/s\n",
    "signatures": b's{"schemaVersion": 2, "layers": [{"mediaType": "t", "size": 1, "digest": "sha256:'
    + b"0" * 64
    + b'", "annotations": {"dev.cosignproject.cosign/signature": "c2ln"}}]}',
    "referrers": b'r{"manifests": [{"mediaType": "t", "size": 1, "digest": "sha256:' + b"0" * 64 + b'"}]}',
}

TARGET = Target(
    run=run,
    seeds=SEEDS,
    longest=2048,
    words=(
        b"realm=",
        b"[[registry]]",
        b"prefix",
        b"location",
        b"mirror",
        b'"auths"',
        b'"auth"',
        b"docker:",
        b"*.",
    ),
    runs=8000,
)
