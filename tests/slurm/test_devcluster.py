"""The development cluster is a real Slurm with real nodes, and says why where it cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SLURM_FOLDER = Path(__file__).resolve().parents[2] / "slurm"
SCRIPT = SLURM_FOLDER / "devcluster.py"
NODES = ["n0", "n1", "n2", "n3"]
DAEMONS = ["munged", "mariadbd", "slurmdbd", "slurmctld", *NODES]
sys.path.insert(0, str(SLURM_FOLDER))

from devcluster_config import (  # noqa: E402
    HOSTS_BEGIN,
    Layout,
    list_nodes,
    read_hosts_owner,
    remove_hosts_block,
    render_hosts_block,
    render_slurm_conf,
)


def run(env: dict[str, str], *argv: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env=os.environ | env, cwd="/", capture_output=True, text=True, timeout=timeout, check=False
    )


def run_devcluster(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Isolated (-S) so that a plain interpreter is proven to be enough."""
    command = [sys.executable, "-S", str(SCRIPT), *argv]
    return subprocess.run(command, env=env or dict(os.environ), capture_output=True, text=True, timeout=60, check=False)


# --- without a cluster


def test_hosts_block_comes_and_goes_without_a_trace() -> None:
    before = "127.0.0.1 localhost\n# mine\n"
    after = "10.0.0.1 printer\n"
    block = render_hosts_block(list_nodes(2), Path("/var/lib/x"))
    assert "10.213.0.11 n1\n" in block
    assert read_hosts_owner(before + block + after) == Path("/var/lib/x")
    assert remove_hosts_block(before + block + after) == before + after


@pytest.mark.parametrize("text", ["", "127.0.0.1 localhost", f"a\n{HOSTS_BEGIN}/x\n1.2.3.4 n0\n"])
def test_a_hosts_file_without_a_whole_block_stays_as_it_is(text: str) -> None:
    assert remove_hosts_block(text) == text


def test_slurm_conf_names_every_node_and_only_our_folder() -> None:
    text = render_slurm_conf(Layout(Path("/srv/dc")), num_nodes=3, memory_mb=4096)
    assert "NodeName=n[0-2] NodeAddr=10.213.0.[10-12] CPUs=4 RealMemory=4096 Gres=gpu:2" in text
    assert "/etc/" not in text
    assert "/var/" not in text


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    folder = tmp_path / "state"
    # sbin folders are searched too, srun and its like lie in none of them
    done = run_devcluster("up", env={"PATH": str(empty), "TUNEYARD_DEVCLUSTER_DIR": str(folder)})
    assert done.returncode == 2
    assert "slurm-wlm" in done.stderr
    assert "apt-get install slurm-wlm slurmdbd mariadb-server munge iproute2" in done.stderr
    assert "nothing was started" in done.stderr
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_without_root_it_says_so_in_one_line() -> None:
    # -c and a changed uid instead of su: nobody may be unable to read the interpreter's folder.
    code = (
        f"import os, runpy, sys; sys.path.insert(0, {str(SLURM_FOLDER)!r}); import devcluster; "
        "import devcluster_network; os.setuid(65534); sys.exit(devcluster.main(['up']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "not root" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", ["relative", "/tmp/with space", "/" + "x" * 90])
@pytest.mark.usefixtures("devcluster")
def test_a_folder_slurm_cannot_name_is_refused(folder: str) -> None:
    done = run_devcluster("up", env=os.environ | {"TUNEYARD_DEVCLUSTER_DIR": folder})
    assert (done.returncode, "TUNEYARD_DEVCLUSTER_DIR" in done.stderr) == (2, True)


@pytest.mark.parametrize("verb", ["up", "down"])
@pytest.mark.usefixtures("devcluster")
def test_a_folder_with_other_files_is_never_taken_over(tmp_path: Path, verb: str) -> None:
    keep = tmp_path / "thesis.tex"
    keep.write_text("x")
    done = run_devcluster(verb, env=os.environ | {"TUNEYARD_DEVCLUSTER_DIR": str(tmp_path)})
    assert done.returncode == 2
    assert keep.exists()


# --- with one


def test_four_nodes_can_take_jobs(devcluster: dict[str, str]) -> None:
    done = run_devcluster("status", "--json", env=os.environ | devcluster)
    status = json.loads(done.stdout)
    assert (done.returncode, status["up"]) == (0, True), done.stdout
    assert [node["name"] for node in status["nodes"]] == NODES
    assert [daemon["name"] for daemon in status["daemons"]] == DAEMONS


def test_status_has_one_line_per_daemon_and_node(devcluster: dict[str, str]) -> None:
    lines = run_devcluster("status", env=os.environ | devcluster).stdout.splitlines()
    assert [line.split()[0] for line in lines] == DAEMONS


def test_every_node_has_its_own_name_and_address(devcluster: dict[str, str]) -> None:
    done = run(devcluster, "srun", "-N4", "sh", "-c", "echo $(hostname) $(hostname -I)")
    assert sorted(done.stdout.split("\n"))[1:] == [f"n{i} 10.213.0.{10 + i}" for i in range(4)], done.stderr


def test_gpus_per_node_sets_cuda_visible_devices(devcluster: dict[str, str]) -> None:
    argv = ["srun", "-N2", "--ntasks-per-node=2", "--gpus-per-node=2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert run(devcluster, *argv).stdout.split() == ["0,1"] * 4
    three = run(devcluster, "srun", "--gpus-per-node=3", "true")
    assert three.returncode != 0


def test_two_ranks_per_node_fit_in_a_step_of_a_batch_job(devcluster: dict[str, str], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    output = tmp_path / "out.txt"
    step = "srun --cpus-per-task=2 sh -c 'echo $SLURM_PROCID $(hostname)'"
    options = ["--wait", "-N4", "--ntasks-per-node=2", "--cpus-per-task=2", "--gpus-per-node=2", f"--output={output}"]
    done = run(devcluster, "sbatch", *options, f"--wrap={step}")
    assert done.returncode == 0, done.stderr
    assert sorted(output.read_text().splitlines()) == [f"{rank} n{rank // 2}" for rank in range(8)]


def test_sacct_tells_how_a_job_ended(devcluster: dict[str, str]) -> None:
    submit = run(devcluster, "sbatch", "--wait", "--parsable", "--output=/dev/null", "--wrap=exit 7")
    job = submit.stdout.strip()
    assert submit.returncode == 7, submit.stderr
    # slurmctld hands its records to slurmdbd in the background
    script = f"for i in $(seq 50); do sacct -X -n -P -j {job} -o state,exitcode | grep FAILED && exit; sleep 0.2; done"
    assert run(devcluster, "sh", "-c", script).stdout.strip() == "FAILED|7:0"


def test_a_time_over_the_limit_is_refused_at_once(devcluster: dict[str, str]) -> None:
    done = run(devcluster, "sbatch", "--time=2-00:00:00", "--output=/dev/null", "--wrap=true")
    assert done.returncode != 0
    assert "time limit" in done.stderr


def test_high_may_preempt_low(devcluster: dict[str, str]) -> None:
    text = run(devcluster, "scontrol", "--oneliner", "show", "partition").stdout
    partitions = {line.split()[0].partition("=")[2]: line for line in text.splitlines()}
    assert set(partitions) == {"main", "low", "spot", "high"}
    assert "PriorityTier=1 " in partitions["low"]
    assert "PreemptMode=REQUEUE" in partitions["low"]
    assert "GraceTime=30" in partitions["low"]
    assert "GraceTime=0" in partitions["spot"]
    assert "PriorityTier=3 " in partitions["high"]


def test_nodes_reach_each_other_by_name(devcluster: dict[str, str], tmp_path: Path) -> None:
    """n3 listens, n0 connects to the name n3: what a rendezvous between nodes does."""
    program = tmp_path / "meet.py"
    program.write_text(
        "import os, socket, time\n"
        "if os.environ['SLURM_PROCID'] == '1':\n"
        "    server = socket.create_server(('10.213.0.13', 29555))\n"
        "    peer, address = server.accept()\n"
        "    print(address[0], peer.recv(99).decode())\n"
        "else:\n"
        "    for _ in range(50):\n"
        "        try:\n"
        "            client = socket.create_connection(('n3', 29555)); break\n"
        "        except OSError:\n"
        "            time.sleep(0.1)\n"
        "    client.sendall(socket.gethostname().encode())\n"
    )
    done = run(devcluster, "srun", "-N2", "--nodelist=n0,n3", sys.executable, str(program))
    assert done.stdout == "10.213.0.10 n0\n", done.stderr


def test_up_again_says_so_and_another_size_is_refused(devcluster: dict[str, str]) -> None:
    env = os.environ | devcluster
    again = run_devcluster("up", "--nodes", "4", env=env)
    assert (again.returncode, "already up" in again.stderr) == (0, True), again.stderr
    assert again.stdout.startswith("export SLURM_CONF=")
    other = run_devcluster("up", "--nodes", "2", env=env)
    assert (other.returncode, "devcluster down" in other.stderr) == (2, True)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_another_folder_neither_joins_nor_ends_this_cluster(devcluster: dict[str, str], verb: str) -> None:
    elsewhere = {"TUNEYARD_DEVCLUSTER_DIR": "/var/lib/tuneyard-devcluster-2"}
    done = run_devcluster(verb, env=os.environ | devcluster | elsewhere)
    assert (done.returncode, "another development cluster is up" in done.stderr) == (2, True)
    assert run_devcluster("status", env=os.environ | devcluster).returncode == 0


def test_up_starts_again_what_died(devcluster: dict[str, str]) -> None:
    env = os.environ | devcluster
    before = json.loads(run_devcluster("status", "--json", env=env).stdout)
    pids = {daemon["name"]: daemon["pid"] for daemon in before["daemons"]}
    os.kill(pids["n2"], 9)
    assert run_devcluster("status", env=env).returncode == 3
    again = run_devcluster("up", "--nodes", "4", env=env)
    assert (again.returncode, "started again: n2" in again.stderr) == (0, True), again.stderr
    assert run(devcluster, "srun", "-w", "n2", "hostname").stdout == "n2\n"
