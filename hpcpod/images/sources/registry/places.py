# SPDX-License-Identifier: Apache-2.0
"""All places of an image, asked one after another, each with patience; what served well is asked first."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from hpcpod.images.sources.registry.client import Client
from hpcpod.images.sources.registry.patience import Patience, pause_before
from hpcpod.images.sources.registry.trouble import Failed, Trouble, error_for, final

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

FEW = 2
"""Tries where the trouble is not likely to go away: no such host, nobody listens."""
_CHANCE_BYTES = 4


class Stopped(Exception):
    """Whoever wanted it wants it no more."""


class Tries:
    """Counts the failed tries of one request at one place, and waits between them."""

    def __init__(self, patience: Patience, stop: threading.Event, note: Callable[[str], None]) -> None:
        self._patience = patience
        self._stop = stop
        self._note = note
        self._count = 0

    def anew(self) -> None:
        """It got on: the next failure counts as the first."""
        self._count = 0

    def wait(self, host: str, trouble: Trouble) -> Trouble | None:
        """Wait for the next try; the trouble to give up with, or None to go on.  Raises Stopped."""
        self._count += 1
        most = min(self._patience.tries, FEW) if trouble.few else self._patience.tries
        if not trouble.again:
            return trouble
        if self._count >= most:
            return trouble if self._count == 1 else _after(trouble, self._count)
        pause = pause_before(self._count, trouble.asked, chance(), self._patience)
        if pause is None:
            asked = f"{trouble.text}; asks to be left alone for {trouble.asked:.0f} s"
            return final(f"{asked}, more than {self._patience.longest_wait:g} s", trouble.kind, trouble.hint)
        if pause >= 1:
            self._note(f"{host}: {trouble.text}; try {self._count + 1} of {most} in {pause:.0f} s")
        if self._stop.wait(pause):
            raise Stopped
        return None


def _after(trouble: Trouble, count: int) -> Trouble:
    return Trouble(f"{trouble.text} ({count} tries)", kind=trouble.kind, hint=trouble.hint)


def chance() -> float:
    """0 to 1, another for each process."""
    bits = 8 * _CHANCE_BYTES
    return float(int.from_bytes(os.urandom(_CHANCE_BYTES)) / (1 << bits))


class Places:
    """The places of one image.  May be used from any thread.

    note: told what is waited for.
    """

    def __init__(self, clients: tuple[Client, ...], patience: Patience, note: Callable[[str], None]) -> None:
        self.patience = patience
        self._clients = list(clients)
        self._lock = threading.Lock()
        self._note = note

    def clients(self) -> tuple[Client, ...]:
        """In the order of asking."""
        with self._lock:
            return tuple(self._clients)

    def prefer(self, client: Client) -> None:
        """Ask this one first from now on."""
        with self._lock:
            self._clients.sort(key=lambda each: each is not client)

    def demote(self, client: Client) -> None:
        """Ask this one last from now on."""
        with self._lock:
            self._clients.sort(key=lambda each: each is client)

    def tries(self, stop: threading.Event) -> Tries:
        """For one request at one place.  stop: set when nobody wants it any more."""
        return Tries(self.patience, stop, self._note)

    def ask(self, what: str, request: Callable[[Client], T]) -> tuple[T, Client]:
        """What the first place that can answers, and which that is.

        request: raises Trouble.  what: names the request in the error.  Raises HpcpodError.
        """
        failures = []
        for client in self.clients():
            found = self._patiently(client, request)
            if not isinstance(found, Trouble):
                return found, client
            failures.append(Failed(client.place, found))
        raise error_for(what, failures)

    def _patiently(self, client: Client, request: Callable[[Client], T]) -> T | Trouble:
        tries = self.tries(threading.Event())
        while True:
            try:
                return request(client)
            except Trouble as trouble:
                given_up = tries.wait(client.place.host, trouble)
                if given_up is not None:
                    return given_up
