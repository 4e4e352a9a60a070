"""A Slurm cluster on this host: munged, slurmctld and a slurmd a node, as root or as any one user."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.slurm.reaper import marked
from tests.train.launching import ROOT, clean_environment

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL"}
SMALL = ("--gres=none", "--cpus-per-task=1", "--mem=0")
"""What makes a job of the scripts' headers fit nodes without GPUs."""


def what_is_missing() -> str:
    """Why there can be no cluster here, in a line; empty where there can."""
    check = ["bash", str(ROOT / "tests/slurm/install.sh"), "--check"]
    return subprocess.run(check, text=True, capture_output=True, check=True).stdout.strip()


class Cluster:
    """A running cluster; as a context, it is up on entry and surely gone on exit.

    A second process, the reaper, waits for this one to end, however it does, and then kills what belongs to
    the cluster.
    """

    def __init__(self, folder: Path, *, nodes: int) -> None:
        self.folder = folder
        # Read as addresses (127.0.0.1, 127.0.0.2, ...), these names need no entry in /etc/hosts.
        assert 1 <= nodes <= 9, nodes
        self.nodes = [f"0x7f00000{number}" for number in range(1, nodes + 1)]
        self.environment = {
            **clean_environment(),
            "PATH": _search_path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHON": sys.executable,
            "INTERFACE": "lo",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._reaper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        for name in ("munge", "state", "log", "devices"):
            (self.folder / name).mkdir(parents=True)
        for path in (self.folder, self.folder / "munge"):
            path.chmod(0o755)
        self._write_configuration()
        reaper = [sys.executable, "-m", "tests.slurm.reaper", str(self.folder / "slurm.conf")]
        self._reaper = subprocess.Popen(
            reaper, cwd=ROOT, env=clean_environment(), text=True, stdin=subprocess.PIPE, start_new_session=True
        )
        self._start_munge()
        self._daemon("slurmctld", "-D", "-c")
        for node in self.nodes:
            self.start_node(node)
        self.wait_for(lambda: self._idle() == len(self.nodes), "all nodes to be idle", seconds=30)

    def _write_configuration(self) -> None:
        for number in range(8):
            (self.folder / "devices" / f"gpu{number}").symlink_to("/dev/null")
        gpus = f"AutoDetect=off\nNodeName=0x7f00000[1-{len(self.nodes)}] Name=gpu File={self.folder}/devices/gpu[0-7]\n"
        (self.folder / "gres.conf").write_text(gpus)
        controller, *ports = _free_ports(len(self.nodes) + 1)
        lines = CONFIGURATION.format(
            folder=self.folder, user=getpass.getuser(), host=socket.gethostname().split(".")[0], port=controller
        )
        for node, port in zip(self.nodes, ports, strict=True):
            lines += (
                f"NodeName={node} NodeHostname={socket.gethostname().split('.')[0]} NodeAddr=127.0.0.1 Port={port} "
                "Sockets=2 CoresPerSocket=48 RealMemory=1000000 Gres=gpu:8\n"
            )
        (self.folder / "slurm.conf").write_text(lines + PARTITIONS)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "private").mkdir(mode=0o700)
        key = folder / "private" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder}/private/{name}" for option, name in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--socket={folder}/socket", *options)
        self.wait_for(lambda: (folder / "socket").exists(), "munged's socket", seconds=10)

    def _daemon(self, *command: str) -> None:
        with open(self.folder / "log" / "daemons.out", "a") as output:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=output, stderr=output, start_new_session=True)
            )

    def stop(self) -> None:
        """Kill everything that belongs to the cluster."""
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait(timeout=60)
            self._reaper = None
        for daemon in self._daemons:
            daemon.wait(timeout=10)
        self._daemons.clear()

    def start_node(self, node: str) -> None:
        """Boot a node."""
        self._daemon("slurmd", "-D", "-N", node)

    def crash_node(self, node: str) -> None:
        """Everything on a node is gone at once: its slurmd, and the ranks of its jobs."""
        conf = self.folder / "slurm.conf"
        # Twice: a process may have been starting another one.
        for _ in range(2):
            for process in marked(conf, node=node):
                _kill(process)

    def revive_node(self, node: str) -> None:
        """Boot a node that crashed, and wait until the cluster has it back."""
        self.start_node(node)
        self.wait_for(lambda: self._resumed(node), f"{node} to be up", seconds=30)

    def _resumed(self, node: str) -> bool:
        state = self._node_state(node)
        if "DOWN" in state and "*" not in state:
            # Refused when the node has just come back by itself.
            self.command("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return "DOWN" not in state and "*" not in state

    def _node_state(self, node: str) -> str:
        return self.fields("node", node)["State"]

    def _idle(self) -> int:
        found = self.command("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%T", check=False)
        return found.split().count("idle")

    def command(self, *words: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands from the checkout; what it prints."""
        done = subprocess.run(
            words, cwd=ROOT, env={**self.environment, **(environment or {})}, text=True, capture_output=True
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def fields(self, kind: str, name: str) -> dict[str, str]:
        """What `scontrol show job|node` says."""
        words = self.command("scontrol", "show", kind, "--oneliner", name).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def submit(
        self,
        script: str,
        *words: object,
        options: Sequence[str] = (),
        nodes: int = 1,
        **environment: object,
    ) -> Job:
        """`NAME=value sbatch OPTIONS slurm/SCRIPT WORDS`, on nodes without GPUs, one task a node."""
        size = (f"--nodes={nodes}", "--ntasks-per-node=1", f"--output={self.folder}/log/job-%j.out")
        submitted = self.command(
            *("sbatch", "--parsable", *SMALL, *size, *options, f"slurm/{script}", *map(str, words)),
            environment={name: str(value) for name, value in environment.items()},
        )
        return Job(self, submitted)

    def clear(self) -> None:
        """Cancel every job, and bring back every node that is down."""
        self.command("scancel", "--user", getpass.getuser(), check=False)
        self.command("scancel", "--user", getpass.getuser(), "--signal=KILL", check=False)
        self.wait_for(lambda: not self.command("squeue", "--noheader"), "the jobs to end", seconds=60)
        for node in self.nodes:
            if "IDLE" not in self._node_state(node):
                self.revive_node(node)

    def wait_for(self, condition: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Wait until something holds."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"waited {seconds} s for {what}\n{self.report()}"
            time.sleep(0.05)

    def report(self) -> str:
        """The ends of all logs."""
        logs = sorted((self.folder / "log").iterdir(), key=lambda path: path.stat().st_mtime)
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)


class Job:
    """A submitted job."""

    def __init__(self, cluster: Cluster, number: str) -> None:
        self.cluster = cluster
        self.number = number

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        return self.cluster.fields("job", self.number)

    def task(self, number: int) -> Job:
        """A task of this array of jobs."""
        return Job(self.cluster, f"{self.number}_{number}")

    @property
    def state(self) -> str:
        """Its state, such as RUNNING."""
        return self.fields()["JobState"]

    @property
    def restarts(self) -> int:
        """How often it went back into the queue."""
        return int(self.fields()["Restarts"])

    @property
    def hosts(self) -> list[str]:
        """The nodes it runs on, the one of its batch script first."""
        return self.cluster.command("scontrol", "show", "hostnames", self.fields()["NodeList"]).split()

    @property
    def output(self) -> str:
        """What it printed, in all attempts."""
        path = self.cluster.folder / "log" / f"job-{self.fields()['JobId']}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, condition: Callable[[], bool], *, seconds: float = 180) -> None:
        """Wait for something that the job will do; fails at once when it ends without doing it."""
        until = time.monotonic() + seconds
        while not condition():
            state = self.state
            late = time.monotonic() > until
            assert not late and (state not in FINAL or condition()), f"{state}\n{self.output[-4000:]}"
            time.sleep(0.05)

    def update(self, setting: str) -> None:
        """`scontrol update` one thing about it, such as TimeLimit=60 (minutes)."""
        self.cluster.command("scontrol", "update", f"JobId={self.number}", setting)

    def end(self, expected: str = "COMPLETED", *, seconds: float = 240) -> Job:
        """Wait for its end."""
        self.until(lambda: self.state in FINAL, seconds=seconds)
        assert self.state == expected, f"{self.fields()}\n{self.output[-6000:]}"
        return self

    def processes(self, module: str) -> list[int]:
        """Ranks of the job that run a module (or a script), in no order."""
        conf = self.cluster.folder / "slurm.conf"
        found = marked(conf, job=self.fields()["JobId"])
        return [process for process in found if module in _command_line(process) and _is_rank(process)]


def _is_rank(process: int) -> bool:
    words = _command_line(process)
    # Not the srun and the shells that carry the same words.
    return bool(words) and Path(words[0]).name.startswith("python")


def _command_line(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return []


def _kill(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


# cred_expire is also how long a requeued job waits; munge credentials last 120 s by default.
CONFIGURATION = """\
ClusterName=tokenflow
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/state/%n
SlurmctldPidFile={folder}/state/slurmctld.pid
SlurmdPidFile={folder}/state/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_min_interval=0
EnforcePartLimits=ALL
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
PARTITIONS = """\
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""
