# SPDX-License-Identifier: Apache-2.0
"""A program in a pod: what it is given, and what its end becomes."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods, step
from tests.integration.pod.image import Tree, write_layout

# ------------------------------------------------------------------ status, streams, signals


def test_the_programs_status_is_the_commands(pods: Pods) -> None:
    for status in (0, 1, 3, 125, 127, 255):
        assert pods.run("sh", "-c", f"exit {status}").returncode == status


def test_the_programs_signal_is_the_commands(pods: Pods) -> None:
    assert pods.run("sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL
    assert pods.run("sh", "-c", "kill -SEGV $$").returncode == -signal.SIGSEGV


def test_signals_reach_the_program(pods: Pods) -> None:
    process = pods.start(
        "sh", "-c", 'trap "echo got it; exit 9" USR1; echo ready; while :; do sleep 0.05; done'
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.communicate(timeout=10)[0] == "got it\n"
    assert process.returncode == 9


def test_input_and_output_pass_through(pods: Pods) -> None:
    done = pods.run("sh", "-c", "cat; echo err >&2", stdin=None, input="a\nb\n")
    assert (done.stdout, done.stderr) == ("a\nb\n", "err\n")


def test_the_preparation_leaves_input_alone(pods: Pods) -> None:
    done = pods.run("cat", stdin=None, input="all of it\n", options=["--env", "NEW_PLAN=1"])
    assert done.stdout == "all of it\n"


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        (
            ["nosuch"],
            127,
            "hpcpod: nosuch: no such program in the image [not-found]\nhint: it was looked for along",
        ),
        (["/no/such"], 127, "hpcpod: /no/such: no such program in the image [not-found]\n"),
        (["/etc"], 126, "hpcpod: /etc: Permission denied [exec]\n"),
        (["/etc/os-release"], 126, "hpcpod: /etc/os-release: Permission denied [exec]\n"),
        ([""], 127, "hpcpod: : no such program in the image [not-found]"),
    ],
)
def test_a_program_that_cannot_start(pods: Pods, program: list[str], status: int, text: str) -> None:
    done = pods.run(*program)
    assert done.returncode == status
    assert done.stderr.startswith(text) and done.stderr.count("\n") <= 2


def test_the_images_own_command(pods: Pods) -> None:
    done = pods.account.run([pods.command, "run", pods.reference], env={"HPCPOD_STORE": str(pods.store)})
    assert (done.returncode, done.stdout) == (0, "from cmd\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run"], "hpcpod: run: no image given [usage]"),
        (["run", "--nothing", "x"], "option --nothing: unknown [usage]"),
        (["run", "--bind"], "lacks its value"),
        (
            ["run", "--bind", "/none-such", "REF", "true"],
            "bind source /none-such: No such file or directory [bind-source]",
        ),
        (["run", "--ntasks", "0", "REF", "true"], "not a positive number [usage]"),
        (["run", "oci:/none-such", "true"], "[image-not-found]"),
        (["run", "REF", "-x"], "after the image [usage]"),
        (["run", "--workdir", "/none", "REF", "true"], "working directory /none in the pod: No such file"),
    ],
)
def test_hpcpods_own_failures_are_125(pods: Pods, words: list[str], text: str) -> None:
    given = [pods.reference if word == "REF" else word for word in words]
    done = pods.account.run([pods.command, *given], env={"HPCPOD_STORE": str(pods.store)})
    assert done.returncode == 125
    assert text in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


# ------------------------------------------------------------------ environment


def environment(
    pods: Pods, *options: str, env: dict[str, str] | None = None, **more: object
) -> dict[str, str]:
    lines = pods.out("env", options=options, env=env, **more).splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_environment_of_node_image_and_option(pods: Pods) -> None:
    node = {
        "LD_PRELOAD": "/x.so",
        "PYTHONPATH": "/x",
        "OMP_NUM_THREADS": "3",
        "FROM_IMAGE": "node",
        "ASKED": "node",
    }
    found = environment(pods, "--env", "ASKED=option", "--env=ALSO=a=b", env=node)
    assert "LD_PRELOAD" not in found and "PYTHONPATH" not in found
    assert found["PATH"] == "/bin"
    assert (found["OMP_NUM_THREADS"], found["FROM_IMAGE"]) == ("3", "yes")
    assert (found["ASKED"], found["ALSO"], found["LD_IMAGE"]) == ("option", "a=b", "kept")
    assert found["HPCPOD_IMAGE"] == pods.reference and found["HPCPOD_DIGEST"].startswith("sha256:")


def test_a_plan_that_is_used_again_takes_the_present_environment(pods: Pods) -> None:
    assert environment(pods, env={"JOB_INPUT": "1"})["JOB_INPUT"] == "1"
    assert environment(pods, env={"JOB_INPUT": "2"})["JOB_INPUT"] == "2"


# ------------------------------------------------------------------ directories


def test_home_and_current_directory_are_the_nodes(pods: Pods) -> None:
    work = pods.account.home.parent / "work"
    work.mkdir()
    work.chmod(0o777)
    (pods.account.home / "in-home").write_text("h")
    (work / "in-work").write_text("w")
    script = "pwd; echo $PWD; cat $HOME/in-home in-work; echo out >made"
    assert pods.out("sh", "-c", script, cwd=work) == f"{work}\n{work}\nhw"
    assert (work / "made").read_text() == "out\n"


def test_no_home(pods: Pods) -> None:
    (pods.account.home / "in-home").write_text("h")
    script = "ls $HOME/in-home 2>/dev/null || echo none"
    assert pods.out("sh", "-c", script, cwd="/", options=["--no-home"], env={"TMPDIR": "/"}) in (
        "none",
        # where the test's home lies below /var/tmp it is seen there
        f"{pods.account.home}/in-home",
    )


def test_a_directory_that_the_pod_lacks_falls_back_to_the_images(pods: Pods) -> None:
    assert pods.out("sh", "-c", "pwd", cwd="/usr/share") == "/opt/app"
    assert pods.out("sh", "-c", "pwd", cwd="/") == "/"


def test_workdir(pods: Pods) -> None:
    assert pods.out("sh", "-c", "pwd; echo $PWD", options=["--workdir", "/mnt"]) == "/mnt\n/mnt"


def test_a_deleted_current_directory(pods: Pods, tmp_path: Path) -> None:
    script = 'd=$(mktemp -d) && cd "$d" && rmdir "$d" && exec "$@"'
    done = pods.run("sh", "-c", "pwd", before=["sh", "-c", script, "sh"], env={"TMPDIR": "/tmp"})
    assert (done.returncode, done.stdout) == (0, "/opt/app\n"), done.stderr


def test_the_nodes_temporary_directories(pods: Pods) -> None:
    for directory in ("/tmp", "/var/tmp"):
        name = Path(directory) / f"hpcpod-test-{pods.account.home.parent.name}"
        try:
            assert pods.out("sh", "-c", f"echo x >{name} && cat {name}") == "x"
            assert name.read_text() == "x\n"
        finally:
            name.unlink(missing_ok=True)


def test_shared_memory_is_the_pods_own(pods: Pods) -> None:
    script = "ls -A /dev/shm; echo x >/dev/shm/test-of-mine && stat -c %a /dev/shm"
    assert pods.out("sh", "-c", script) == "1777"
    assert not Path("/dev/shm/test-of-mine").exists()


def test_the_size_of_shared_memory(pods: Pods) -> None:
    assert pods.out("sh", "-c", "stat -f -c '%b %S' /dev/shm", options=["--shm-size=1M"]) == "256 4096"


# ------------------------------------------------------------------ accounts


def test_the_user_is_itself(pods: Pods) -> None:
    uid = pods.account.uid
    assert pods.out("id", "-u") == str(uid) and pods.out("id", "-g") == str(uid)
    last = pods.out("cat", "/etc/passwd").splitlines()[-1].split(":")
    assert last[2:4] == [str(uid), str(uid)] and last[5] == str(pods.account.home)
    assert pods.out("grep", "-c", "^smith:", "/etc/passwd") == "1"
    assert f":x:{uid}:" in pods.out("cat", "/etc/group")


def test_files_made_in_a_pod_are_the_users(pods: Pods) -> None:
    pods.out("sh", "-c", "umask 027; echo x >$HOME/made")
    status = (pods.account.home / "made").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (
        pods.account.uid,
        pods.account.uid,
        0o640,
    )


def test_the_umask_passes(pods: Pods) -> None:
    done = pods.run("sh", "-c", "umask", before=["sh", "-c", 'umask 0077; exec "$@"', "sh"])
    assert done.stdout == "0077\n"


def test_the_nodes_hosts_file(pods: Pods) -> None:
    assert pods.out("cat", "/etc/hosts") == Path("/etc/hosts").read_text().rstrip("\n")


# ------------------------------------------------------------------ the root


def test_the_root_is_the_images_and_read_only(pods: Pods) -> None:
    assert pods.out("cat", "/etc/os-release") == "ID=tiny"
    done = pods.run("sh", "-c", "echo x >/made")
    assert done.returncode != 0 and "Read-only file system" in done.stderr
    assert not any("hpcpod" in name for name in pods.out("ls", "-a", "/").split())


@pytest.mark.needs("overlay")
def test_a_writable_root_is_gone_with_the_pod(pods: Pods) -> None:
    script = "echo x >/made && rm /etc/os-release && mkdir /a && cat /made; ls /etc/os-release"
    done = pods.run("sh", "-c", script, options=["--writable"])
    assert done.stdout == "x\n" and "No such file" in done.stderr
    assert (
        pods.out("sh", "-c", "ls /made 2>/dev/null; cat /etc/os-release", options=["--writable"]) == "ID=tiny"
    )


@pytest.mark.needs("overlay")
def test_the_writable_layer_has_a_size(pods: Pods) -> None:
    script = "cat /dev/zero >/fill; stat -c %s /fill"
    done = pods.run("sh", "-c", script, options=["--writable-size=1M"])
    assert "No space left" in done.stderr and int(done.stdout) <= 1 << 20


@pytest.mark.needs("overlay")
def test_a_layer_too_small_for_the_image_is_named(pods: Pods, layouts: Path, tree: Tree) -> None:
    lines = b"".join(b"g%d:x:%d:\n" % (number, number) for number in range(20_000, 60_000))
    accounts = lines.replace(b":\n", b":1:x:/:/bin/sh\n")
    files = {**tree.files, "etc/group": (0o644, lines), "etc/passwd": (0o644, accounts)}
    reference = write_layout(layouts / f"many-{pods.account.uid}", replace(tree, files=files))
    done = pods.run("true", reference=reference, options=["--writable-size=1M"])
    assert done.returncode == 125 and "No space left on device [mount]\nhint: " in done.stderr
    assert "--writable-size" in done.stderr
    assert pods.run("true", reference=reference, options=["--writable-size=64M"]).returncode == 0


def test_debug_may_stand_before_run(pods: Pods) -> None:
    words = pods.words(["sh", "-c", 'echo "$@"', "sh", "--debug", "run"])
    env = {"HPCPOD_STORE": str(pods.store)}
    for before in (["--debug"], ["--debug", "--debug"]):
        done = pods.account.run([words[0], *before, *words[1:]], env=env)
        assert (done.returncode, done.stdout) == (0, "--debug run\n"), done.stderr
        assert "hpcpod: " in done.stderr  # the phases of the preparation, also where a plan is there
    done = pods.account.run([words[0], "--debug", "run", "--no-such"], env=env)
    assert done.returncode == 125 and "option --no-such: unknown [usage]" in done.stderr
    for words_of_help in (["--debug", "run", "--help"], ["run", "--bind", "/x", "-h"]):
        done = pods.account.run([words[0], *words_of_help], env=env)
        assert done.returncode == 0 and "--writable-size" in done.stdout


@pytest.mark.parametrize("ignored", ["HUP,INT,QUIT,TERM", "CHLD,PIPE,USR1"])
def test_signals_that_are_ignored_stay_so(pods: Pods, ignored: str) -> None:
    """As after nohup(1), or below a shell's `&`; the pod is made and ends as ever."""
    before = ["env", f"--ignore-signal={ignored}"]
    kept = set(ignored.split(",")) - {"CHLD"}  # a shell takes that one for itself
    mask = sum(1 << getattr(signal, f"SIG{name}") - 1 for name in kept)
    for env in ({}, step(0, 1), step(0, 2)):
        said = pods.out("sh", "-c", "grep SigIgn /proc/self/status", env=env, before=before)
        assert int(said.split()[1], 16) & mask == mask
    if pods.pods():
        pods.out("true", env=step(1, 2), before=before)
    pods.wait_gone()


def test_programs_of_the_image_are_not_the_nodes(pods: Pods) -> None:
    assert pods.run("python3", "-c", "").returncode == 127
    assert (
        subprocess.run(["sh", "-c", "command -v python3"], capture_output=True, check=False).returncode == 0
    )
