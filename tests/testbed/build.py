# SPDX-License-Identifier: Apache-2.0
"""The steps that make an image: mmdebstrap for Debian, pip for wheels, umoci for layers."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

Say = Callable[[str], None]

VENV = "opt/mpi"
"""Where wheels lie in an image."""

PYTHON = "3.11"
"""Debian 12's."""

SITE = f"{VENV}/lib/python{PYTHON}/site-packages"
"""Where their Python modules are."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL = 15
"""Lines of a tool's output that an error shows."""


def explain(error: OSError | subprocess.SubprocessError) -> str:
    """What failed, with the end of what the tool said."""
    if isinstance(error, subprocess.CalledProcessError):
        words = error.cmd if isinstance(error.cmd, str) else shlex.join(error.cmd)
        said = "\n".join(f"{error.stdout or ''}{error.stderr or ''}".splitlines()[-TAIL:])
        return f"{words}: exit status {error.returncode}\n{said}"
    return str(error)


def _run(words: Sequence[str | Path], **environment: str) -> str:
    """Run a tool to its end; its stdout.  Raises CalledProcessError with all that it said."""
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **environment},
    )
    return done.stdout


def remove_tree(path: Path) -> None:
    """Remove a tree that may have directories without write permission, as images do."""
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(stat.S_IRWXU)
    shutil.rmtree(path)


def link_or_copy(source: str, target: str) -> str:
    """Blobs never change, so that copies of a layout share them; index.json is replaced, never rewritten."""
    if "/blobs/" in source:
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def open_to_all(path: Path) -> None:
    """Let every user read that file or tree."""
    if path.is_file():
        path.chmod(0o644)
        return
    for folder, _, names in os.walk(path):
        Path(folder).chmod(0o755)
        for name in names:
            Path(folder, name).chmod(0o644)


# --------------------------------------------------------------------------- Debian


def rootless_gaps() -> list[str]:
    """What mmdebstrap lacks to work for this plain user."""
    gaps = [] if shutil.which("newuidmap") else ["package uidmap"]
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a uid without an entry in passwd
        name = str(os.getuid())
    ids = Path("/etc/subuid")
    rows = ids.read_text().splitlines() if ids.exists() else []
    if not any(row.split(":")[0] in {name, str(os.getuid())} for row in rows):
        gaps.append(f"a range of uids for {name} in /etc/subuid and /etc/subgid (usermod --add-subuids)")
    return gaps


def _sources(suite: str) -> list[str]:
    """This machine's own mirrors of that Debian release, as lines of sources.list(5); may be empty."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = _run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    rows = [line.split() for line in listed.splitlines()]
    return sorted(
        {f"deb {' '.join(row)}" for row in rows if row[1] == suite or row[1].startswith(f"{suite}-")}
    )


def _transport_options() -> list[str]:
    """How this machine's apt reaches its mirrors: proxies, certificates, retries."""
    names = ("Acquire::http", "Acquire::https", "Acquire::Retries", "Acquire::ForceIPv4")
    dumped = _run(["apt-config", "dump", "--no-empty", "--format", "%F %v%n", *names])
    rows = [line.split(" ", 1) for line in dumped.splitlines()]
    return [f'{row[0]} "{row[1]}"' for row in rows if len(row) == 2]


def debootstrap(suite: str, packages: Sequence[str], archive: Path, say: Say) -> None:
    """Write a tar archive of the smallest Debian system with these packages.

    No device nodes: images have none, and a plain user could not unpack them.
    """
    options = [f"--aptopt={option}" for option in ['APT::Install-Recommends "false"', *_transport_options()]]
    words = [
        *("mmdebstrap", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", "--variant=minbase"),
        *("--skip=output/mknod", f"--include={','.join(packages)}", *options),
        '--customize-hook=rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap',  # this machine's proxies are its own
        *(suite, str(archive), *_sources(suite)),
    ]
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("I: ") and "..." in line:
                say(f"  mmdebstrap: {line[3:].strip()}")
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, words, "", "".join(lines))


# --------------------------------------------------------------------------- umoci


def layout_from(archive: Path, layout: Path) -> Path:
    """A new OCI layout whose image ``latest`` has that archive as its one layer."""
    _run(["umoci", "init", "--layout", layout])
    _run(["umoci", "new", "--image", f"{layout}:latest"])
    _run(["umoci", "raw", "add-layer", "--image", f"{layout}:latest", archive])
    return layout


def configure(layout: Path, env: Sequence[str], *, venv: bool) -> None:
    """Give the image the environment and the command that its users expect; drop blobs no longer used."""
    path = f"/{VENV}/bin:{SYSTEM_PATH}" if venv else SYSTEM_PATH
    options = [f"--config.env={word}" for word in (f"PATH={path}", "LANG=C.UTF-8", *env)]
    _run(["umoci", "config", "--image", f"{layout}:latest", "--config.cmd=bash", *options])
    _run(["umoci", "gc", "--layout", layout])


def copy_image(source: str, target: str, compression: str | None) -> None:
    """skopeo copy, with another compression of the layers if one is named."""
    options = ["--dest-compress-format", compression, "--dest-compress"] if compression else []
    _run(["skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target])


def insert(layout: Path, source: Path, target: str) -> None:
    """Add one file to the image as a layer of its own."""
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    _run(["umoci", "insert", *rootless, "--image", f"{layout}:latest", source, target])


def compile_mpi(compiler: str, source: Path, program: Path) -> None:
    """Compile a C program against an MPI of this machine."""
    _run([compiler, "-O2", "-o", program, source])


class Bundle:
    """An image's files on disk, and the way back into the image: each `commit` makes a layer."""

    def __init__(self, layout: Path, folder: Path) -> None:
        self._layout = layout
        self._folder = folder
        self._rootless = [] if os.geteuid() == 0 else ["--rootless"]
        self._root = folder / "rootfs"

    def __enter__(self) -> Bundle:
        _run(["umoci", "unpack", *self._rootless, "--image", f"{self._layout}:latest", self._folder])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        remove_tree(self._folder)

    def commit(self) -> None:
        """Pack what changed since the last time as a layer."""
        _run(["umoci", "repack", "--refresh-bundle", "--image", f"{self._layout}:latest", self._folder])

    def size(self) -> int:
        """Bytes of all files."""
        entries = (Path(folder, name) for folder, _, names in os.walk(self._root) for name in names)
        return sum(path.lstat().st_size for path in entries)

    def add_packages(self, suite: str, packages: Sequence[str]) -> None:
        """Install Debian packages with this machine's apt, whose downloads then work as configured."""
        with tempfile.TemporaryDirectory() as scratch:
            sources = Path(scratch, "sources.list")
            sources.write_text("\n".join(_sources(suite)) + "\n")
            configuration = Path(scratch, "apt.conf")
            configuration.write_text(self._apt_configuration(scratch))
            # Maintainer scripts need /dev/null; the mount goes with the namespace, whatever happens.
            script = f'mount --rbind /dev "$0/dev" && apt-get update && apt-get install {" ".join(packages)}'
            words = ["unshare", "--mount", "--propagation=private", "sh", "-ec", script, str(self._root)]
            _run(words, APT_CONFIG=str(configuration))
        for name in ("var/lib/apt/lists", "var/cache/apt"):
            remove_tree(self._root / name)
            (self._root / name).mkdir()

    def _apt_configuration(self, scratch: str) -> str:
        """Work on the image's packages, from this machine's mirrors, without this machine's own hooks."""
        values = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::SourceList": f"{scratch}/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": f"{self._root}/var/lib/apt",
            "Dir::State::status": f"{self._root}/var/lib/dpkg/status",
            "Dir::Cache": f"{self._root}/var/cache/apt",
            "Dir::Log": scratch,
            "DPkg::Chroot-Directory": str(self._root),
            "APT::Install-Recommends": "false",
            "APT::Get::Assume-Yes": "true",
            "APT::Sandbox::User": "root",
        }
        lines = [f'{name} "{value}"' for name, value in values.items()]
        return "".join(f"{line};\n" for line in [*lines, *_transport_options()])

    def add_wheels(self, names: Sequence[str]) -> None:
        """Download wheels with pip, as configured, and lay them out as a virtual environment would."""
        venv = self._root / VENV
        with tempfile.TemporaryDirectory() as scratch:
            tags = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
            machine = platform.machine()
            _run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch),
                    *("--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"),
                    *(f"--platform={tag}_{machine}" for tag in tags),
                    *names,
                ]
            )
            for wheel in sorted(Path(scratch).glob("*.whl")):
                unpack_wheel(wheel, venv, Path(SITE).relative_to(VENV))
        (venv / "bin").mkdir(exist_ok=True)
        (venv / "bin" / "python3").symlink_to("/usr/bin/python3")
        text = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n"
        (venv / "pyvenv.cfg").write_text(text)

    def remove_documentation(self) -> None:
        """What a slim image does without."""
        for name in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
            path = self._root / name
            if path.is_dir():
                remove_tree(path)
                path.mkdir(mode=0o755)


def unpack_wheel(wheel: Path, prefix: Path, site: Path) -> None:
    """Install a wheel for another system's Python (binary distribution format, "Installing a wheel")."""
    schemes = {"purelib": site, "platlib": site, "data": Path(), "scripts": Path("bin")}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            head, _, rest = info.filename.partition("/")
            folder = site
            name = info.filename
            if head.endswith(".data"):
                scheme, _, name = rest.partition("/")
                folder = schemes.get(scheme, Path("include"))
            if info.is_dir():
                continue
            target = prefix / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = info.external_attr >> 16
            target.write_bytes(archive.read(info))
            target.chmod(0o755 if mode & 0o111 or folder == Path("bin") else 0o644)
