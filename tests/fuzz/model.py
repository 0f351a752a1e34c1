# SPDX-License-Identifier: Apache-2.0
"""What a tree is after layers were applied, by image-spec's layer.md and hpcpod's rules, without any disk.

A second implementation, as plain as possible: directories are dicts, names are looked up step by step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
AUFS = (".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk")
LINKS_MAX = 40
"""Symlinks that the kernel follows in one path (path_resolution(7))."""


class Refused(Exception):
    """The entry must be refused."""


@dataclass(eq=False)
class Node:
    """A file, directory or symlink.  made: names in this directory that the present layer has made."""

    kind: str
    content: bytes = b""
    mode: int = 0
    names: dict[str, Node] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    parent: Node | None = None

    def destroy(self) -> None:
        """Forget what is below."""
        for child in list(self.names.values()):
            child.destroy()
        self.names.clear()


@dataclass(frozen=True)
class Item:
    """One tar entry.  kind: ``-``, ``d``, ``l``, ``h`` (hard link), ``p`` (FIFO)."""

    kind: str
    name: str
    link: str = ""
    content: bytes = b""
    mode: int = 0o644


def components(name: str) -> list[str]:
    """The name's parts."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not name or ".." in parts:
        raise Refused("name")
    return parts


class Model:
    """A tree."""

    def __init__(self) -> None:
        self.root = Node("d", mode=0o755)
        self.lowest = True

    def layer(self, items: list[Item]) -> None:
        """Apply one layer.  Raises Refused."""
        for item in items:
            self._apply(item)
        self.lowest = False
        self._forget_made(self.root)

    def _forget_made(self, node: Node) -> None:
        node.made.clear()
        for child in node.names.values():
            self._forget_made(child)

    def _apply(self, item: Item) -> None:
        if item.kind == "-" and item.name.endswith("/"):
            raise Refused("a file that ends with a slash")
        parts = components(item.name)
        if not parts:
            if item.kind != "d":
                raise Refused("root")
            self.root.mode = item.mode
            return
        *head, name = parts
        for part in head:
            if part in AUFS:
                return
            if part.startswith(WHITEOUT):
                raise Refused("below a whiteout")
        if name.startswith(WHITEOUT):
            self._whiteout(item, head, name)
        elif item.kind == "h":
            self._hard_link(item, head, name)
        else:
            parent = self._make(head)
            self._mark(parent, name)
            self._put(item, parent, name)

    def _put(self, item: Item, parent: Node, name: str) -> None:
        present = parent.names.get(name)
        if item.kind == "d" and present is not None and present.kind == "d":
            present.mode = item.mode
            return
        if item.kind == "l" and not item.link:
            raise Refused("empty symlink")
        self._clear(parent, name)
        if item.kind != "p":
            content = item.link.encode() if item.kind == "l" else item.content
            parent.names[name] = Node(item.kind, content, item.mode, parent=parent)

    def _mark(self, directory: Node | None, name: str) -> None:
        child = name
        while directory is not None:
            directory.made.add(child)
            above = directory.parent
            if above is not None:
                child = next(key for key, value in above.names.items() if value is directory)
            directory = above

    def _clear(self, parent: Node, name: str) -> None:
        gone = parent.names.pop(name, None)
        if gone is not None:
            gone.destroy()

    def _hard_link(self, item: Item, head: list[str], name: str) -> None:
        target = components(item.link)
        where = self._find(target[:-1]) if target else None
        source = where.names.get(target[-1]) if where is not None else None
        if where is None or source is None or source.kind == "d":
            raise Refused("hard link")
        parent = self._make(head)
        self._mark(parent, name)
        if parent.names.get(name) is source:
            return
        self._clear(parent, name)
        if where.names.get(target[-1]) is not source:
            raise Refused("hard link to what it replaces")
        parent.names[name] = source

    def _whiteout(self, item: Item, head: list[str], name: str) -> None:
        if name in AUFS:
            return
        target = name[len(WHITEOUT) :]
        if name != OPAQUE and target in ("", ".", ".."):
            raise Refused("whiteout")
        if item.kind not in "-h":
            raise Refused("whiteout of another kind")
        parent = None if self.lowest else self._find(head)
        if parent is None:
            return
        if name == OPAQUE:
            self._empty(parent)
        else:
            self._hide(parent, target)

    def _hide(self, parent: Node, name: str) -> None:
        child = parent.names.get(name)
        if child is None:
            return
        if name not in parent.made:
            self._clear(parent, name)
        elif child.kind == "d":
            self._empty(child)

    def _empty(self, directory: Node) -> None:
        for name in list(directory.names):
            self._hide(directory, name)

    def _find(self, path: list[str]) -> Node | None:
        try:
            return self._walk(path)
        except (Refused, FileNotFoundError):
            return None

    def _make(self, path: list[str]) -> Node:
        try:
            return self._walk(path)
        except FileNotFoundError:
            pass
        parent = self._make(path[:-1])
        if path[-1] in parent.names:
            raise Refused("a symlink that leads nowhere")
        made = parent.names[path[-1]] = Node("d", mode=0o755, parent=parent)
        return made

    def _walk(self, path: list[str]) -> Node:
        """The directory, through symlinks that stay inside.  Raises FileNotFoundError, Refused."""
        at, left, links = self.root, list(path), 0
        while left:
            part = left.pop(0)
            if at.kind != "d":
                raise Refused("not a directory")
            if part in ("", "."):
                continue
            if part == "..":
                at = at.parent or self.root
                continue
            child = at.names.get(part)
            if child is None:
                raise FileNotFoundError
            if child.kind == "l":
                links += 1
                if links > LINKS_MAX:
                    raise Refused("too many symlinks")
                target = child.content.decode()
                left = [*target.split("/"), *left]
                at = self.root if target.startswith("/") else at
            else:
                at = child
        if at.kind != "d":
            raise Refused("not a directory")
        return at

    def tree(self) -> dict[str, tuple[str, int, bytes]]:
        """Kind, mode (0o777 for symlinks) and content of every name; directories have none."""
        found: dict[str, tuple[str, int, bytes]] = {}

        def visit(node: Node, path: str) -> None:
            for name, child in node.names.items():
                mode = 0o777 if child.kind == "l" else child.mode
                found[f"{path}{name}"] = (child.kind, mode, child.content)
                visit(child, f"{path}{name}/")

        visit(self.root, "")
        return found
