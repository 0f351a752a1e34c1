# SPDX-License-Identifier: Apache-2.0
"""What registries' headers say, and how long they are waited for."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.images.sources.registry.challenge import (
    Challenge,
    content_range,
    parse_challenges,
    retry_after,
)
from hpcpod.images.sources.registry.patience import Patience, pause_before
from hpcpod.images.sources.registry.proxies import proxy_for
from hpcpod.images.sources.registry.signatures import next_page
from hpcpod.images.sources.registry.trouble import refusal, said

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-._~+", min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', (Challenge("basic", (("realm", "x"),)),)),
        ("Basic", (Challenge("basic"),)),
        (
            'Bearer realm="https://a/t",service="s, with a comma",scope="repository:a/b:pull,push"',
            (
                Challenge(
                    "bearer",
                    (
                        ("realm", "https://a/t"),
                        ("service", "s, with a comma"),
                        ("scope", "repository:a/b:pull,push"),
                    ),
                ),
            ),
        ),
        (
            r'bearer Realm = "a\"b\\" , error=invalid',
            (Challenge("bearer", (("realm", 'a"b\\'), ("error", "invalid"))),),
        ),
        ("Negotiate YWJj==, Basic realm=x", (Challenge("negotiate"), Challenge("basic", (("realm", "x"),)))),
        ("NTLM, Digest a=b", (Challenge("ntlm"), Challenge("digest", (("a", "b"),)))),
        ('Bearer realm="no end', (Challenge("bearer"),)),
        ("", ()),
        (",,, ,", ()),
        ("\x00", ()),
    ],
)
def test_challenges(header: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header)[: len(expected)] == expected


@given(st.lists(st.tuples(TOKEN, st.text(st.characters(codec="latin-1"), max_size=20)), max_size=5))
def test_parameters_are_read_back(parameters: list[tuple[str, str]]) -> None:
    quoted = ", ".join(
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"')) for name, value in parameters
    )
    (found,) = parse_challenges(f"Bearer {quoted}")
    assert found.parameters == tuple((name.lower(), value) for name, value in parameters)


@given(st.text(max_size=300))
def test_challenges_take_anything(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower() != ""


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        (formatdate(1_000_100, usegmt=True), 100.0),
        (formatdate(10, usegmt=True), 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 783_111_777.0),
        ("9" * 400, float("9" * 12)),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Mon, 99 Foo 2026", None),
        ("\u0661", None),
    ],
)
def test_retry_after(header: str, expected: float | None) -> None:
    assert retry_after(header, 1_000_000) == expected


@given(st.text(max_size=80))
def test_retry_after_takes_anything(header: str) -> None:
    found = retry_after(header, 0)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes 5-9/10", (5, 9, 10)),
        ("bytes 5-9/*", (5, 9, None)),
        ("bytes */10", None),
        ("bytes 9-5/10", None),
        ("items 5-9/10", None),
        ("bytes 5-9", None),
        ("bytes -5-9/10", None),
        ("", None),
    ],
)
def test_content_range(header: str, expected: tuple[int, int, int | None] | None) -> None:
    assert content_range(header) == expected


@given(st.integers(1, 100), st.floats(0, 1), st.none() | st.floats(0, 1000))
def test_pauses_are_bounded(tries: int, fraction: float, asked: float | None) -> None:
    patience = Patience()
    found = pause_before(tries, asked, fraction, patience)
    if asked is not None and asked > patience.longest_wait:
        assert found is None
    else:
        assert found is not None
        assert (asked or 0) <= found <= max(patience.longest_pause, patience.longest_wait + 1)


def test_pauses_grow_and_differ() -> None:
    patience = Patience(pause=1, longest_pause=100)
    assert [pause_before(n, None, 1.0, patience) for n in (1, 2, 3, 9)] == [1, 2, 4, 100]
    assert pause_before(3, None, 0.0, patience) == 2


HTTPS = {"HTTPS_PROXY": "http://proxy:3128"}


@pytest.mark.parametrize(
    ("environment", "host", "expected"),
    [
        ({}, "a.example", ""),
        (HTTPS, "a.example", "http://proxy:3128"),
        ({"https_proxy": "lower:1", **HTTPS}, "a.example", "http://lower:1"),
        ({"ALL_PROXY": "http://all:1"}, "a.example", "http://all:1"),
        ({"HTTP_PROXY": "http://other:1"}, "a.example", ""),
        (HTTPS, "localhost", ""),
        (HTTPS, "127.0.0.2", ""),
        (HTTPS, "::1", ""),
        ({**HTTPS, "NO_PROXY": "*"}, "a.example", ""),
        ({**HTTPS, "NO_PROXY": "b, example"}, "a.example", ""),
        ({**HTTPS, "NO_PROXY": ".example"}, "a.example", ""),
        ({**HTTPS, "no_proxy": "*.example"}, "a.example", ""),
        ({**HTTPS, "NO_PROXY": "xample"}, "a.example", "http://proxy:3128"),
        ({**HTTPS, "NO_PROXY": "a.example:443"}, "a.example", ""),
        ({**HTTPS, "NO_PROXY": "a.example:80"}, "a.example", "http://proxy:3128"),
        ({**HTTPS, "NO_PROXY": "10.0.0.0/8"}, "10.1.2.3", ""),
        ({**HTTPS, "NO_PROXY": "10.0.0.0/8"}, "11.1.2.3", "http://proxy:3128"),
        ({**HTTPS, "NO_PROXY": "fd00::/8,x"}, "fd00::1", ""),
        ({**HTTPS, "NO_PROXY": "1/x/y,,"}, "10.1.2.3", "http://proxy:3128"),
    ],
)
def test_proxies(environment: dict[str, str], host: str, expected: str) -> None:
    assert proxy_for(environment, "https", host, 443) == expected


@given(st.binary(max_size=200))
def test_words_of_a_registry_take_anything(body: bytes) -> None:
    code, words = said(body)
    assert words.isprintable() and len(words) <= 160 and isinstance(code, str)
    assert refusal(500, {}, body, None).again


def test_words_of_a_registry_are_short_and_escaped() -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "\\u001b[2J' + b"x" * 1000 + b'"}]}'
    assert said(body)[1].startswith("DENIED: \\x1b[2Jxxx")
    assert len(said(body)[1]) == 160


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('</v2/a/b/referrers/D?n=1&last=x>; rel="next"', "referrers/D?n=1&last=x"),
        ("<https://other/v2/a/b/referrers/D?n=1>;rel=next", "referrers/D?n=1"),
        ('</v2/a/b/referrers/E?n=1>; rel="next"', ""),
        ('</v2/a/b/referrers/D?n=1>; rel="prev"', ""),
        ('</v2/a/b/referrers/D?n=1 x>; rel="next"', ""),
        ("", ""),
    ],
)
def test_next_page(link: str, expected: str) -> None:
    assert next_page(link, "a/b", "D") == expected
