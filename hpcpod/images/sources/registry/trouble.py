# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at one place, and what is said when it went wrong at all of them.  Pure.

A :class:`Trouble` never leaves this room: the next try, or the next mirror, may do better.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hpcpod.errors import HpcpodError, ImageNotFound, RegistryDenied, RegistryFailed
from hpcpod.frozen import frozen
from hpcpod.images.sources.registry.conf import Place
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Mapping

ERROR_BYTES = 64 << 10
"""Of an answer that is no success: what is read of it."""
TEXT = 160
"""Characters of a registry's own words that are shown."""
_ABSENT = ("MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "NAME_INVALID", "NOT_FOUND")
_BUSY = (408, 425, 429)


class Trouble(Exception):
    """A request failed at one place.

    text: what happened, printable, without credentials.  kind: of the error that it becomes where no other
    place does better.  again: whether another try at this place may help; few: but not many.  asked: seconds
    that the registry wants to be left alone, None for nothing said.  unencrypted: it may be that the server
    speaks no TLS.  status: of the answer, 0 for none.
    """

    def __init__(  # noqa: PLR0913 - each is a fact of its own, all but the first by name
        self,
        text: str,
        *,
        kind: type[HpcpodError] = RegistryFailed,
        again: bool = True,
        few: bool = False,
        asked: float | None = None,
        unencrypted: bool = False,
        status: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.kind = kind
        self.again = again
        self.few = few
        self.asked = asked
        self.unencrypted = unencrypted
        self.status = status
        self.hint = hint


def final(what: str, kind: type[HpcpodError] = RegistryFailed, hint: str | None = None) -> Trouble:
    """Trouble that another try at this place would not mend."""
    return Trouble(what, kind=kind, again=False, hint=hint)


@frozen
class Failed:
    """A place, and why it was given up."""

    place: Place
    trouble: Trouble


def error_for(what: str, failures: Sequence[Failed]) -> HpcpodError:
    """The error to end with after all places failed; each is named, with its reason.

    Its kind is that of the last, which is the registry itself: a mirror need not have everything.
    """
    told = "; ".join(
        f"{'mirror ' if failed.place.mirror else ''}{failed.place.host}: {failed.trouble.text}"
        for failed in failures
    )
    own = next((failed for failed in failures if not failed.place.mirror), failures[-1])
    hint = own.trouble.hint or next((f.trouble.hint for f in failures if f.trouble.hint), None)
    return own.trouble.kind(f"{what}: {told}", hint=hint)


def refusal(status: int, headers: Mapping[str, str], body: bytes, asked: float | None) -> Trouble:
    """The trouble that an answer without success means (distribution-spec, "Error Codes").

    asked: by Retry-After, seconds.
    """
    trouble = _meaning(status, headers, body)
    trouble.status, trouble.asked = status, asked
    return trouble


def _meaning(status: int, headers: Mapping[str, str], body: bytes) -> Trouble:
    code, words = said(body)
    text = f"answers {status}{f', {words}' if words else ''}"
    if status in _BUSY or (status >= 500 and status != 501):
        return Trouble(text)
    if status in (401, 403):
        return final(
            text,
            RegistryDenied,
            "it wants credentials, or others: containers-auth.json(5) says where they are looked for",
        )
    if status == 404:
        if not words and "html" in headers.get("content-type", "").lower():
            return final("answers 404 with a page of HTML; no registry speaks there")
        return final(f"not there (404{f', {words}' if words else ''})", ImageNotFound)
    return final(text, ImageNotFound if code in _ABSENT else RegistryFailed)


def said(body: bytes) -> tuple[str, str]:
    """The code and the words of a registry's error document, escaped and short; empty for none."""
    try:
        first = json.loads(body)["errors"][0]
        code, message = first.get("code", ""), first.get("message", "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", ""
    if not isinstance(code, str) or not isinstance(message, str):
        return "", ""
    words = ": ".join(shown(part[:TEXT]) for part in (code, message) if part)
    return code, words[:TEXT] if len(words) > TEXT else words
