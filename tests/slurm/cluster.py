"""A SLURM cluster of two nodes on this machine, in a temporary folder of its own: Debian's packages, no service, no root.

    python tests/slurm/cluster.py                    a shell inside the cluster, which is gone when the shell ends
    python tests/slurm/cluster.py bam-train -m ...   one command inside it

Root is needed only where the packages `slurm-wlm` and `munge` are still to be installed.
"""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "setpriv")

CONF = """\
ClusterName=bam
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its first start has expired: 120 s by default, and no less than 5.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
# Signals reach every process of a job, as with the cgroups of a real cluster; proctrack/pgid would miss a run's process.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
# A job of `urgent` takes the node of one of `gpu`, which is told {grace} s before, killed, and put back into the queue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{signal}GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=4 RealMemory=64000 Gres=gpu:1
PartitionName=gpu Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=n[1-2] PriorityTier=2
"""

GRES = "NodeName=n[1-2] Name=gpu File=/dev/zero\n"
"""A GPU for each node that SLURM can hand out (CUDA_VISIBLE_DEVICES=0), and that is none."""

SACCT = """\
#!/bin/sh
# Stands in for SLURM's accounting, which needs a data base: submitit asks it for the states of jobs.
echo 'JobID|State|NodeList'
jobs=$(scontrol --oneliner show jobs)
state='.* JobState=([A-Z_]+) .*'
# Elements of an array that were cancelled before they began have lost their numbers: all those that have no line of their own.
echo "$jobs" | sed -nE "s/.*ArrayJobId=([0-9]+) ArrayTaskId=4294967294 $state/\\1_[0-999]|\\2|n/p"
echo "$jobs" | sed -nE \\
    -e "s/.*ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) $state/\\1_\\2|\\3|n/p;t" \\
    -e "s/.*ArrayJobId=([0-9]+) ArrayTaskId=([0-9,-]+)%?[0-9]* $state/\\1_[\\2]|\\3|n/p;t" \\
    -e "s/^JobId=([0-9]+) $state/\\1|\\2|n/p"
"""


class Unavailable(RuntimeError):
    """Why there can be no cluster on this machine."""


@dataclass
class Cluster:
    """A running cluster: nodes n1 and n2 with a make-believe GPU each, partitions `gpu` and `urgent`."""

    folder: Path
    daemons: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be inside the cluster."""
        return {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{_path()}",
        }

    def run(self, *words: str, seconds: float = 60) -> str:
        """The output of a SLURM command."""
        return subprocess.run(
            words, env=self.environment, check=True, capture_output=True, text=True, timeout=seconds
        ).stdout.strip()

    def signal(self, number: str, name: str) -> None:
        """Send a signal to every process of a job; scancel may go on asking after a job that the signal has requeued."""
        with suppress(subprocess.TimeoutExpired):
            self.run("scancel", f"--signal={name}", number, seconds=5)

    def clear(self) -> None:
        """Cancel every job and wait until none is left.

        Raises:
            Unavailable: if they do not end.
        """
        self.run("scancel", f"--user={os.getuid()}")
        _until(lambda: not self.run("squeue", "--noheader"), self, "jobs do not end", seconds=30)

    def log(self) -> str:
        """The end of every daemon's log."""
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-20:])
            for path in sorted(self.folder.glob("*.log"))
        )


def install() -> None:
    """Have Debian's packages, installing them if that is possible.

    Raises:
        Unavailable: with the reason.
    """
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(f"no {', '.join(missing)} here: install them with: sudo apt-get install {' '.join(PACKAGES)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        ended = subprocess.run(
            ["apt-get", "-q", *words], env=quiet, capture_output=True, text=True, check=False, timeout=600
        )
        if ended.returncode != 0:
            reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"apt-get {' '.join(words)} failed: {reason}")


@contextmanager
def cluster(*, grace: int = 10, user_signal: bool = False) -> Iterator[Cluster]:
    """A cluster for as long as the context lasts.

    `grace` is the time in seconds between a pre-empted job's notice and its end; with `user_signal` the notice is also
    the signal that submitit has asked for, as administrators are told to set it.

    Raises:
        Unavailable: if it cannot be brought up, with the reason.
    """
    install()
    with tempfile.TemporaryDirectory(prefix="bam_exp-slurm-", ignore_cleanup_errors=True) as name:
        made = Cluster(Path(name))
        try:
            _start(made, grace, user_signal)
            yield made
        finally:
            _stop(made)


def _start(made: Cluster, grace: int, user_signal: bool) -> None:
    folder, host = made.folder, socket.gethostname()
    for inside in ("state", "n1", "n2", "bin"):
        (folder / inside).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "bin" / "sacct").write_text(SACCT)
    (folder / "bin" / "sacct").chmod(0o755)
    signal = "SlurmctldParameters=preempt_send_user_signal\n" if user_signal else ""
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    conf = CONF.format(host=host, ports=_free_ports(3), user=user, folder=folder, grace=grace, signal=signal)
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text(GRES)
    version = re.search(r"\d+", made.run("slurmctld", "-V"))
    if (
        version and int(version[0]) >= 24
    ):  # older ones know no "disabled", newer ones cannot do without it in a container
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    munge = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
    files = [f"--{option}={folder / name}" for option, name in munge.items()]
    _daemon(made, "munged", "munged", "--foreground", "--force", "--num-threads=2", *files)
    _until((folder / "munge.socket").exists, made, "munged does not answer")
    _daemon(made, "slurmctld", "slurmctld", "-D")
    for node in ("n1", "n2"):
        _daemon(made, node, "slurmd", "-D", "-N", node)
    _until(lambda: _idle(made), made, "the nodes do not become idle")


def _stop(made: Cluster) -> None:
    if _idle(made, states=("idle", "allocated", "mixed", "completing")):
        try:
            made.clear()
        except (Unavailable, subprocess.SubprocessError) as error:
            print(f"while the cluster was taken down: {error}", file=sys.stderr)
    for daemon in reversed(made.daemons):
        daemon.terminate()
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _daemon(made: Cluster, name: str, *words: str) -> None:
    """Start a daemon that dies with this process, whatever happens to it; its log stands in the folder."""
    with (made.folder / f"{name}.log").open("wb") as log:
        made.daemons.append(
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *words],
                env=made.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )


def _idle(made: Cluster, states: tuple[str, ...] = ("idle",)) -> bool:
    try:
        found = made.run("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%T").split()
    except subprocess.SubprocessError:
        return False
    return len(found) == 2 and all(state in states for state in found)


def _until(condition: Callable[[], bool], made: Cluster, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(daemon.poll() is not None for daemon in made.daemons):
            raise Unavailable(f"{what}\n{made.log()}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Ports in a row that nothing listens on."""
    for first in range(17000 + os.getpid() % 1000, 30000, count):
        ports = list(range(first, first + count))
        try:
            for port in ports:
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", port))
        except OSError:
            continue
        return ports
    raise Unavailable("no free ports")


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


if __name__ == "__main__":
    try:
        with cluster() as here:
            sys.exit(subprocess.call(sys.argv[1:] or [os.environ.get("SHELL", "sh")], env=here.environment))
    except Unavailable as error:
        sys.exit(str(error))
