# SPDX-License-Identifier: Apache-2.0
"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.lint.sources import shown, sources

FILE_LINES = 400
PYTHON_FUNCTION_LINES = 40
"""Without the docstring: a long explanation is no fault."""
C_FUNCTION_LINES = 60

PYTHON = [path for path in sources() if path.suffix == ".py"]
C = [path for path in sources() if path.suffix in {".c", ".h"}]

Function = tuple[str, int, int]
"""Name, first line, number of lines."""


def python_functions(text: str) -> Iterator[Function]:
    """Each function of a module, from ``def`` to its last line, its docstring not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, node.lineno, lines


_NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_HEAD = re.compile(r"(\w+)\s*\([^;{}]*\)\s*$")


def c_functions(text: str) -> Iterator[Function]:
    """Each function of a C file, from the line of its brace; comments and strings are blanked first."""
    code = _NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    depth = start = line = 0
    name = ""
    head = ""
    for line, row in enumerate(code.splitlines(), 1):
        if depth == 0 and row.lstrip().startswith("#"):
            continue
        for character in row:
            if character == "{":
                match = _HEAD.search(head)
                if depth == 0 and match:
                    name, start = match.group(1), line
                depth += 1
            elif character == "}":
                depth -= 1
                if depth == 0:
                    if name:
                        yield name, start, line - start + 1
                    name = head = ""
            elif depth == 0:
                head = "" if character == ";" else head + character
        head += " "


def test_files_are_short() -> None:
    lines = {shown(path): len(path.read_text().splitlines()) for path in PYTHON + C}
    long = [f"{name}: {count}" for name, count in lines.items() if count > FILE_LINES]
    assert not long, f"files over {FILE_LINES} lines: {long}"


def test_python_functions_are_short() -> None:
    long = [
        f"{shown(path)}:{line}: {name}: {lines}"
        for path in PYTHON
        for name, line, lines in python_functions(path.read_text())
        if lines > PYTHON_FUNCTION_LINES
    ]
    assert not long, f"functions over {PYTHON_FUNCTION_LINES} lines: {long}"


def test_c_functions_are_short() -> None:
    long = [
        f"{shown(path)}:{line}: {name}: {lines}"
        for path in C
        for name, line, lines in c_functions(path.read_text())
        if lines > C_FUNCTION_LINES
    ]
    assert not long, f"functions over {C_FUNCTION_LINES} lines: {long}"


def test_c_functions_are_found() -> None:
    text = (
        "#define BRACE {\n"
        "struct point {\n  int x;\n};\n"
        "static int a(const char *s)\n{\n  return s[0] == '{' || \"}\"[0]; /* } */\n}\n"
        "int table[] = {\n  1, 2,\n};\n"
        "void b(void) {\n  if (1) {\n  }\n}\n"
    )
    assert list(c_functions(text)) == [("a", 6, 3), ("b", 12, 4)]
