"""Cluster profiles: where they are found, what a wrong one says, and those that are shipped."""

from pathlib import Path

import pytest

from launcher.cluster import detect_accelerator, list_clusters, load_cluster
from launcher.errors import SpecError, UserError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Also the current folder; nothing in either yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(text: str) -> str:
    write(Path("x.yaml"), text)
    with pytest.raises(SpecError) as caught:
        load_cluster("x.yaml", environ={})
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_shipped_profile_loads(home):
    shipped = {entry.name: entry.scheduler for entry in list_clusters()}
    assert shipped == {"a100": "slurm", "devcluster": "slurm", "h100": "slurm", "local": "local"}
    for name in shipped:
        assert load_cluster(name, environ={}).name == name


def test_the_development_cluster_is_where_its_variable_says(home):
    assert load_cluster("devcluster", environ={}).slurm_conf == "/var/lib/tuneyard-devcluster/slurm.conf"
    elsewhere = load_cluster("devcluster", environ={"TUNEYARD_DEVCLUSTER_DIR": "/tmp/dev"})
    assert elsewhere.slurm_conf == "/tmp/dev/slurm.conf"


def test_a_path_comes_first_then_the_project_then_the_user_then_what_is_shipped(home):
    assert load_cluster("local", environ={}).scheduler == "local"
    write(home / ".config/tuneyard/clusters/local.yaml", "partition: user\n")
    assert load_cluster("local", environ={}).partition == "user"
    write(Path("cluster_configs/local.yaml"), "partition: project\n")
    assert load_cluster("local", environ={}).partition == "project"
    assert next(entry for entry in list_clusters() if entry.name == "local").path.parts[0] == "cluster_configs"
    write(Path("here/local.yaml"), "partition: path\n")
    assert load_cluster("here/local.yaml", environ={}).partition == "path"
    assert load_cluster("local.yaml", cwd=Path("here"), environ={}).partition == "path"


@pytest.mark.parametrize("name", ["nope", "", "..", "x" * 300, "a\0b", "a\nb"])
def test_an_unknown_profile_lists_those_found(home, name):
    write(Path("cluster_configs/mine.yaml"), "scheduler: [broken\n")
    with pytest.raises(UserError, match="the profiles found are a100, devcluster, h100, local, mine;"):
        load_cluster(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheduler: slrum\n", 'x.yaml:1:12: scheduler: expected one of slurm, local; got text "slrum"'),
        ("gpu_per_node: 8\n", "x.yaml:1:1: gpu_per_node: unknown key"),
        ("name: x\n", "name: a profile is called what its file is called"),
        ("accelerator: auto\n", "accelerator: auto looks at this machine, and the ranks run on others"),
        ("accelerator: cpu\ngpu: h100-80gb\n", "x.yaml:2:6: gpu: stands beside accelerator: cpu"),
        ("scheduler: local\npartition: p\n", "x.yaml:2:12: partition: means nothing to scheduler: local"),
        ("scheduler: local\nnodes: 2\n", "x.yaml:2:8: nodes: scheduler: local has one node"),
        ("max_time: 0h\n", "max_time: a duration of nothing"),
        ("env: {A-B: x}\n", "x.yaml:1:12: env.A-B: no environment variable can be called so"),
        ('env: {A: "x\\ny"}\n', "env.A: a value has one line"),
        ("sbatch: {--x: 1}\n", "sbatch.--x: no long sbatch option is called so"),
        ("sbatch: {x: [1]}\n", "sbatch.x: an option takes one line of text"),
        ("partition: 'a b'\n", "partition: expected names of A-Z"),
        ("setup: module load cuda\n", "setup: expected a list of texts; got text"),
        ("env: {A: *x}\n", "x.yaml:1:10: env.A: an alias (*...) cannot stand here"),
        ("poll_seconds: 0\n", "poll_seconds: must be greater than 0, got 0"),
    ],
)
def test_a_wrong_profile_is_refused_with_place_and_remedy(home, text, message):
    told = refused(text)
    assert message in told
    assert "hint: " in told


def test_no_profile_names_a_person_or_a_secret(home):
    for entry in list_clusters():
        text = entry.path.read_text()
        assert "/home/" not in text
        assert "TOKEN" not in text


@pytest.mark.parametrize(
    ("files", "visible", "expected"),
    [
        ([], None, ("cpu", 1)),
        (["nvidiactl", "nvidia-uvm"], None, ("cpu", 1)),
        (["nvidia0", "nvidia1", "nvidiactl"], None, ("cuda", 2)),
        (["nvidia0", "nvidia1"], "1", ("cuda", 1)),
        (["nvidia0", "nvidia1"], "0,GPU-8f2", ("cuda", 2)),
        (["nvidia0", "nvidia1"], "0,7,1", ("cuda", 1)),
        (["nvidia0", "nvidia1"], "", ("cpu", 1)),
        (["nvidia0"], "-1", ("cpu", 1)),
        (["nvidia0"], "NoDevFiles", ("cpu", 1)),
    ],
)
def test_the_accelerator_is_what_cuda_would_see(tmp_path, monkeypatch, files, visible, expected):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    for name in files:
        (tmp_path / name).touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert detect_accelerator(tmp_path, environ) == expected


def test_nvidia_smi_is_asked_where_there_are_no_device_files(tmp_path, monkeypatch):
    script = write(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\necho 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    assert detect_accelerator(tmp_path, {}) == ("cuda", 2)


def test_auto_is_resolved_when_a_profile_is_loaded(home):
    cluster = load_cluster("local", environ={})
    assert (cluster.accelerator, cluster.gpus_per_node) == detect_accelerator()
