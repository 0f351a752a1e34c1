# SPDX-License-Identifier: Apache-2.0
"""Assignments of a shell script, as far as they mean the same wherever the script runs.  Pure.

Apptainer keeps an image's environment as shell scripts, nearly all of whose lines are ``export NAME="value"``
or ``export NAME="${NAME:-"value"}"``.  Those are read here (POSIX.1-2017, Shell Command Language, 2.2 and
2.6.2), and nothing is executed.  The first statement that is anything else ends the reading: what follows may
depend on it.
"""

from __future__ import annotations

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_LATER = _FIRST | frozenset("0123456789")
_BLANKS = " \t"
_ENDS = "\n;"
_COMMANDS = frozenset("|&<>()`~*?[")
"""Characters that, not quoted, make more of a word than its letters."""
_ESCAPED = '"\\$`'
"""What a backslash quotes between double quotes (2.2.3)."""


class Unread(Exception):
    """A statement that is not a plain assignment."""


class Assignments:
    """Reads scripts one after the other.

    exported: variables so far, in order.  known: values of variables that scripts may use without setting
    them.
    """

    def __init__(self, known: dict[str, str]) -> None:
        self.exported: dict[str, str] = {}
        self._values = dict(known)
        self._text = ""
        self._at = 0
        self._name = ""

    def read(self, text: str) -> int:
        """Take a script; the number of the first line that was not read, 0 where all was."""
        self._text, self._at = text, 0
        while self._at < len(text):
            start = self._at
            try:
                self._statement()
            except Unread:
                return 1 + text.count("\n", 0, start)
        return 0

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        """The next character.  Raises Unread at the end."""
        character = self._peek()
        if not character:
            raise Unread
        self._at += 1
        return character

    def _statement(self) -> None:
        """One command, its end included; what it sets counts only when all of it could be read."""
        words: list[tuple[str, str | None]] = []
        export = False
        while True:
            while (character := self._peek()) and character in _BLANKS:
                self._at += 1
            if not character or character in _ENDS:
                self._at += 1
                break
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
                continue
            name = self._word_name()
            if self._peek() == "=":
                self._at += 1
                self._name = name
                words.append((name, self._word()))
            elif name == "export" and not export and not words:
                export = True
            elif export and name:
                words.append((name, None))
            else:
                raise Unread
            if self._peek() and self._peek() not in _BLANKS + _ENDS:
                raise Unread
        self._set(words, export)

    def _set(self, words: list[tuple[str, str | None]], export: bool) -> None:
        for name, value in words:
            if value is not None:
                self._values[name] = value
            elif name not in self._values:
                raise Unread  # it exports what it inherits
            if export or name in self.exported:
                self.exported[name] = self._values[name]

    def _word_name(self) -> str:
        start = self._at
        while (character := self._peek()) and character in (_LATER if self._at > start else _FIRST):
            self._at += 1
        return self._text[start : self._at]

    def _word(self) -> str:
        """The value of an assignment, to a blank or the statement's end."""
        pieces = []
        while (character := self._peek()) and character not in _BLANKS + _ENDS:
            self._at += 1
            if character == "'":
                pieces.append(self._until_quote())
            elif character == '"':
                pieces.append(self._quoted('"'))
            elif character == "\\":
                pieces.append(self._escaped())
            elif character == "$":
                value = self._expansion(quoted=False)
                if set(value) & {*_BLANKS, "\n", "*", "?", "["}:
                    raise Unread  # shells differ in whether they split it
                pieces.append(value)
            elif character in _COMMANDS:
                raise Unread
            else:
                pieces.append(character)
        return "".join(pieces)

    def _escaped(self) -> str:
        character = self._take()
        return "" if character == "\n" else character

    def _until_quote(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise Unread
        piece, self._at = self._text[self._at : end], end + 1
        return piece

    def _quoted(self, end: str) -> str:
        """What stands between double quotes, or in braces between them, to its end, which is passed over."""
        pieces = []
        while (character := self._take()) != end:
            if character == "\\":
                following = self._take()
                plain = following in _ESCAPED or following == end
                pieces.append("" if following == "\n" else following if plain else "\\" + following)
            elif character == "$":
                pieces.append(self._expansion(quoted=True))
            elif character == '"':  # quotes within braces within quotes
                pieces.append(self._quoted('"'))
            elif character == "`":
                raise Unread
            else:
                pieces.append(character)
        return "".join(pieces)

    def _expansion(self, *, quoted: bool) -> str:
        """What ``$NAME`` or ``${NAME…}`` stands for; the dollar sign is behind us."""
        braces = self._peek() == "{"
        self._at += braces
        name = self._word_name()
        if not name:
            raise Unread  # $(…), $1, $$
        value = self._values.get(name)
        if not braces:
            return self._known(value)
        form = self._take()
        if form == "}":
            return self._known(value)
        empty_counts = form == "-"
        if form == ":":
            form = self._take()
        if form != "-":
            raise Unread
        if not quoted and self._peek() != '"':
            raise Unread  # rare, and shells differ in whether they split it
        other = self._quoted("}")
        if value is None and name != self._name:
            raise Unread  # the node's variable decides
        return value if value or (value is not None and empty_counts) else other

    @staticmethod
    def _known(value: str | None) -> str:
        if value is None:
            raise Unread  # a variable of the node
        return value
