# SPDX-License-Identifier: Apache-2.0
"""What the headers of a registry's answer ask for: WWW-Authenticate, Retry-After, Content-Range.  Pure."""

from __future__ import annotations

from hpcpod.frozen import frozen

LONGEST = 8192
"""Characters of a WWW-Authenticate header that are looked at."""
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_TOKEN68 = frozenset("-._~+/0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SPACE = " \t"


@frozen
class Challenge:
    """One way to authenticate that a server offers.  scheme and the parameters' names are in lower case."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """A parameter's value, the first of that name; empty for none."""
        return next((value for key, value in self.parameters if key == name), "")


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of a WWW-Authenticate header (RFC 9110, 11.6.1), as far as they can be understood.

    What cannot be is left out, never guessed: a server that offers nothing else is refused.
    """
    scanner = _Scanner(header[:LONGEST])
    found = []
    while (challenge := scanner.challenge()) is not None:
        found.append(challenge)
    return tuple(found)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def challenge(self) -> Challenge | None:
        self._skip(_SPACE + ",")
        scheme = self._word(_TOKEN)
        if not scheme or not self._ends_word():
            return None
        self._skip(_SPACE)
        self._token68()
        parameters = []
        while (parameter := self._parameter()) is not None:
            parameters.append(parameter)
        return Challenge(scheme.lower(), tuple(parameters))

    def _ends_word(self) -> bool:
        return self._at == len(self._text) or self._text[self._at] in _SPACE + ","

    def _token68(self) -> None:
        """Pass over the one word without a name that a scheme may have instead of parameters."""
        start = self._at
        word = self._word(_TOKEN68)
        self._skip("=")
        if not word or not (self._at == len(self._text) or self._rest().lstrip(_SPACE)[:1] in ("", ",")):
            self._at = start

    def _rest(self) -> str:
        return self._text[self._at : self._at + 64]

    def _parameter(self) -> tuple[str, str] | None:
        """NAME=VALUE; the position stays where there is none."""
        start = self._at
        self._skip(_SPACE + ",")
        name = self._word(_TOKEN)
        self._skip(_SPACE)
        if not name or self._text[self._at : self._at + 1] != "=":
            self._at = start
            return None
        self._at += 1
        self._skip(_SPACE)
        value = self._quoted() if self._text[self._at : self._at + 1] == '"' else self._word(_TOKEN)
        if value is None:
            self._at = start
            return None
        return name.lower(), value

    def _quoted(self) -> str | None:
        """A quoted string (RFC 9110, 5.6.4); None for one without an end."""
        found: list[str] = []
        at = self._at + 1
        while at < len(self._text):
            character = self._text[at]
            if character == '"':
                self._at = at + 1
                return "".join(found)
            if character == "\\":
                at += 1
                character = self._text[at : at + 1]
            found.append(character)
            at += 1
        return None

    def _word(self, allowed: frozenset[str]) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] in allowed:
            self._at += 1
        return self._text[start : self._at]

    def _skip(self, characters: str) -> None:
        while self._at < len(self._text) and self._text[self._at] in characters:
            self._at += 1


def retry_after(header: str, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3): a number, or a date; None for neither.

    now: seconds since 1970.  A date in the past is 0.
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    when = http_date(text)
    return None if when is None else max(0.0, when - now)


def http_date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date in any of its three forms (RFC 9110, 5.6.7); None for no date."""
    from email.utils import mktime_tz, parsedate_tz

    if not text.isascii() or len(text) > 64:
        return None
    try:
        parsed = parsedate_tz(text)
        return None if parsed is None else float(mktime_tz(parsed))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def content_range(header: str) -> tuple[int, int, int | None] | None:
    """First and last byte and the size of the whole (None for ``*``); None for what says nothing else.

    RFC 9110, 14.4.
    """
    unit, _, rest = header.strip().partition(" ")
    span, slash, total = rest.strip().partition("/")
    first, dash, last = span.partition("-")
    numbers = (first, last) if total == "*" else (first, last, total)
    if unit.lower() != "bytes" or not slash or not dash or not all(map(_is_number, numbers)):
        return None
    if int(last) < int(first):
        return None
    return int(first), int(last), None if total == "*" else int(total)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19
