# SPDX-License-Identifier: Apache-2.0
"""The frozen records behave as frozen dataclasses do, and cost what they are there to save."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass

import pytest

from hpcpod.frozen import frozen, replace


@frozen
class Ours:
    name: str
    size: int = 3


@frozen
class Other:
    name: str
    size: int = 3


@dataclass(frozen=True)
class Theirs:
    name: str
    size: int = 3


@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_construction(kind: type) -> None:
    assert vars(kind("a")) == {"name": "a", "size": 3}
    assert kind("a", 4) == kind(name="a", size=4) != kind("a")
    assert hash(kind("a")) == hash(kind("a", 3))
    for wrong in ((), ("a", 1, 2)):
        with pytest.raises(TypeError):
            kind(*wrong)
    for named in ({"nome": "a"}, {"name": "a", "siz": 2}):
        with pytest.raises(TypeError):
            kind(**named)
    with pytest.raises(TypeError):
        kind("a", name="b")


@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_frozen(kind: type) -> None:
    record = kind("a")
    with pytest.raises((AttributeError, FrozenInstanceError)):
        record.name = "b"
    with pytest.raises((AttributeError, FrozenInstanceError)):
        del record.name


def test_type_counts_for_equality() -> None:
    ours: object = Ours("a")
    assert ours != Other("a")
    assert ours != ("a", 3)


def test_match_by_position() -> None:
    match Ours("a", 5):
        case Ours(name, size):
            assert (name, size) == ("a", 5)


def test_repr_and_replace() -> None:
    assert repr(Ours("a")) == "Ours(name='a', size=3)"
    assert replace(Ours("a"), size=9) == Ours("a", 9)


def test_preparing_imports_neither_dataclasses_nor_inspect() -> None:
    code = "import sys, hpcpod.launcher.prepare; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"typing", "dataclasses", "inspect", "ctypes", "subprocess", "tempfile"}
    heavy |= {"click", "isal", "zstandard", "pyseccomp"}
    assert not heavy & set(loaded.stdout.split())
