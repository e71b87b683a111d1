"""The configuration files of the development cluster, as text (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CLUSTER_NAME = "tuneyard"
# RFC 1918, and rarely anybody's own network; `up` refuses when a route for it exists already.
NETWORK = "10.213.0.0/24"
HOST_ADDRESS = "10.213.0.1"
# The controller's own name, on the host's end of the bridge: independent of what the machine is called.
HEAD = "head"
FIRST_NODE_ADDRESS = 10
MAX_NODES = 16

# Twice what a small machine has. Tasks are not bound (task/none), so declaring more only oversubscribes:
# two ranks with two CPUs each fit on a node, beside the batch step.
CPUS_PER_NODE = 4
GPUS_PER_NODE = 2

# Slurm's own ports plus 10000, so that a Slurm that is already here is left alone.
SLURMCTLD_PORT = 16817
SLURMD_PORT = 16818
SLURMDBD_PORT = 16819


@dataclass(frozen=True)
class Node:
    """One simulated machine: its names on both sides of the namespace border."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        """The network namespace, as `ip netns` names it."""
        return f"tuneyard-{self.name}"

    @property
    def host_link(self) -> str:
        """The host's end of the node's cable (`ip link set ... down` and `tc netem` work on it)."""
        return f"ty-{self.name}"


def list_nodes(num_nodes: int) -> list[Node]:
    prefix = HOST_ADDRESS.rpartition(".")[0]
    return [Node(f"n{i}", f"{prefix}.{FIRST_NODE_ADDRESS + i}") for i in range(num_nodes)]


@dataclass(frozen=True)
class Layout:
    """Where things lie in the state folder; the one owner of its paths."""

    folder: Path

    @property
    def state_file(self) -> Path:
        return self.folder / "state.json"

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def munge(self) -> Path:
        return self.folder / "munge"

    @property
    def munge_socket(self) -> Path:
        return self.munge / "munge.socket"

    @property
    def database(self) -> Path:
        return self.folder / "mariadb"

    @property
    def database_socket(self) -> Path:
        return self.database / "mariadb.socket"

    @property
    def devices(self) -> Path:
        return self.folder / "dev"

    @property
    def hostnames(self) -> Path:
        """Bind mounts that keep each node's UTS namespace alive."""
        return self.folder / "uts"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"


def render_slurm_conf(layout: Layout, num_nodes: int, memory_mb: int) -> str:
    """slurm.conf; `memory_mb` is what one node may hand out."""
    last = num_nodes - 1
    prefix, _, _ = HOST_ADDRESS.rpartition(".")
    addresses = f"{prefix}.[{FIRST_NODE_ADDRESS}-{FIRST_NODE_ADDRESS + last}]"
    hardware = f"CPUs={CPUS_PER_NODE} RealMemory={memory_mb} Gres=gpu:{GPUS_PER_NODE}"
    return f"""\
# Written by devcluster.py, removed by `devcluster.py down`. A development cluster: nothing here is safe for production.
ClusterName={CLUSTER_NAME}
SlurmctldHost={HEAD}({HOST_ADDRESS})
SlurmctldPort={SLURMCTLD_PORT}
SlurmdPort={SLURMD_PORT}
# slurmctld listens on the bridge only, not on the machine's real interfaces: on what its own hostname resolves to.
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits cred_expire + 1 s before it may start again (default 121 s).
AuthInfo=socket={layout.munge_socket},cred_expire=10
StateSaveLocation={layout.spool}/slurmctld
SlurmdSpoolDir={layout.spool}/%n
SlurmctldPidFile={layout.spool}/slurmctld.pid
SlurmdPidFile={layout.spool}/%n.pid
SlurmctldLogFile={layout.logs}/slurmctld.log
SlurmdLogFile={layout.logs}/%n.log

# Several slurmd on one machine: no cgroups, no binding, and CPUs= believed even where the machine has fewer.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2

# Faults are noticed, and their consequences over, within seconds.
SlurmdTimeout=15
KillWait=5
JobRequeue=1
# The main scheduler looks at pending jobs every 60 s and backfill every 30 s by default.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={memory_mb // CPUS_PER_NODE}
# Without it a job over a partition's MaxTime is accepted and pends for ever (PartitionTimeLimit).
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Preemption sends the job's own --signal at once and SIGTERM after GraceTime; without it, SIGTERM at once.
# (Slurm 22.05 reads the option here; a PreemptParameters line would be refused as unknown.)
SlurmctldParameters=preempt_send_user_signal

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={HOST_ADDRESS}
AccountingStoragePort={SLURMDBD_PORT}
# Towards slurmdbd the munge socket is named here; AuthInfo is not looked at.
AccountingStoragePass={layout.munge_socket}
AccountingStorageTRES=gres/gpu

GresTypes=gpu
NodeName=n[0-{last}] NodeAddr={addresses} {hardware}
PartitionName=DEFAULT Nodes=n[0-{last}] State=UP DefaultTime=01:00:00 MaxTime=1-00:00:00 PreemptMode=OFF
PartitionName=main Default=YES PriorityTier=2
PartitionName=low  PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=spot PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high PriorityTier=3
"""


def render_gres_conf(layout: Layout) -> str:
    # A bare Count= is rejected for gpu; File= must name character devices.
    return f"Name=gpu File={layout.devices}/gpu[0-{GPUS_PER_NODE - 1}]\n"


def render_slurmdbd_conf(layout: Layout) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost={HEAD}
DbdAddr={HOST_ADDRESS}
DbdPort={SLURMDBD_PORT}
SlurmUser=root
LogFile={layout.logs}/slurmdbd.log
PidFile={layout.spool}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def render_hosts_block(nodes: list[Node], folder: Path) -> str:
    """The lines for /etc/hosts, between markers that say whose they are."""
    lines = "".join(f"{node.address} {node.name}\n" for node in nodes)
    return f"{HOSTS_BEGIN}{folder}\n{HOST_ADDRESS} {HEAD}\n{lines}{HOSTS_END}\n"


HOSTS_BEGIN = "# BEGIN tuneyard devcluster "
HOSTS_END = "# END tuneyard devcluster"


def remove_hosts_block(text: str) -> str:
    """`text` of a hosts file without our block; a block whose end is missing is left alone."""
    before, begin, rest = text.partition(HOSTS_BEGIN)
    _, end, after = rest.partition(HOSTS_END + "\n")
    return before + after if begin and end else text


def read_hosts_owner(text: str) -> Path | None:
    """The state folder named in our block of a hosts file, if there is one."""
    _, begin, rest = text.partition(HOSTS_BEGIN)
    return Path(rest.partition("\n")[0]) if begin else None
