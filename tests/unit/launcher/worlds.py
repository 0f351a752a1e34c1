# SPDX-License-Identifier: Apache-2.0
"""Facts for plans: a user, an image, a place in a job."""

from __future__ import annotations

from hpcpod.frozen import replace
from hpcpod.launcher.plan import Facts, NodePaths, UserFacts, make_plan
from hpcpod.launcher.record import rootfs_path
from hpcpod.launcher.request import parse_request
from hpcpod.model import (
    FileStamp,
    FuseImage,
    ImageConfig,
    ImageFacts,
    Mpiexec,
    MpiFamily,
    MpiLibrary,
    NodePlan,
    Platform,
    PmiKind,
    StepContext,
    Tree,
    VerifiedImage,
)

PASSWD = "root:x:0:0:root:/root:/bin/bash\nsmith:x:500:500::/home/smith:/bin/sh\n"
GROUP = "root:x:0:\nwheel:x:10:smith\n"

USER = UserFacts(
    uid=1001,
    gid=1001,
    name="alice",
    home="/home/alice",
    shell="/bin/bash",
    groups=((1001, "alice"), (27, "g27")),
)
IMAGE = VerifiedImage(
    reference="oci:/images/app:latest",
    digest="sha256:" + "ab" * 32,
    rootfs=Tree("/store/images/sha256-" + "ab" * 32 + "/rootfs"),
    platform=Platform("linux", "amd64"),
    place="8:1:4711",
    config=ImageConfig(
        env=(
            ("PATH", "/opt/app/bin:/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
            ("ODD", "a=b\nc"),
            ("HOME", "/root"),
            ("SLURM_PROCID", "9"),
        ),
        entrypoint=("/opt/app/bin/start",),
        cmd=("--serve",),
        workdir="/opt/app",
    ),
)
PACKED = replace(
    IMAGE,
    rootfs=FuseImage(
        file="/store/images/sha256-" + "ab" * 32 + ".squashfs/rootfs.squashfs",
        name="sha256-" + "ab" * 32 + ".squashfs",
        server="/usr/bin/squashfuse_ll",
    ),
)
"""The same image as a squashfs file, for FUSE."""
MPICH = MpiLibrary(MpiFamily.MPICH, "/usr/lib/libmpich.so.12", frozenset({PmiKind.PMI1, PmiKind.PMI2}))
INSIDE = ImageFacts(passwd=PASSWD, group=GROUP, mpi=(), mpiexec=())
INSIDE_MPICH = ImageFacts(
    passwd=PASSWD, group=GROUP, mpi=(MPICH,), mpiexec=(Mpiexec(MpiFamily.MPICH, "/usr/bin/mpiexec.hydra"),)
)
ALONE = StepContext(
    launcher="local", scope="", job_id="", step_id="", node="n0", rank=0, local_rank=0, ntasks=1,
    local_ntasks=1, served=frozenset(), environment={}, cwd="/scratch/alice/run",
)  # fmt: skip
STEP = StepContext(
    launcher="slurm", scope="slurm-12.0", job_id="12", step_id="0", node="n0", rank=0, local_rank=0, ntasks=4,
    local_ntasks=2, served=frozenset({PmiKind.PMIX}), environment={"PMIX_SECURITY_MODE": "munge,native"},
    cwd="/home/alice",
)  # fmt: skip
GUARD = FileStamp("/images/app/index.json", 2049, 77, 510, 1700000000123456789, 1700000000223456789)
ROOTFS, FILE = (
    FileStamp(rootfs_path(image.rootfs), 2049, 4242, 4096, 1700000001000000000, 1700000001000000000)
    for image in (IMAGE, PACKED)
)
FACTS = Facts(
    user=USER, inside=INSIDE, context=ALONE,
    paths=NodePaths("/opt/hpcpod/bin/hpcpod", "/dev/shm/hpcpod-1001/events"),
    guards=(GUARD,), seccomp=bytes(range(8)),
)  # fmt: skip


def plan(
    *words: str, variables: dict[str, str] | None = None, image: VerifiedImage = IMAGE, **changes: object
) -> NodePlan:
    """The plan of ``hpcpod run WORDS`` in this world, with these facts changed."""
    request, rest = parse_request([*words, IMAGE.reference], variables or {})
    assert rest == [IMAGE.reference]
    return make_plan(request, image, replace(FACTS, **changes))
