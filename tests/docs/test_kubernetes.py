"""The manifests are valid, and say of kvtierd what is true of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_words
import pytest
import yaml
from kvtierd import PATIENCE_S, KVTierd, eventually

from kvtier import config, daemon
from kvtier.config import GIB, MIB, Config, parse_toml
from kvtier.secret_file import write_root

FOLDER = make_words.ROOT / "systemd" / "kubernetes"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
BESIDES_BYTES = 1 * GIB  # at least, beside the arena
UNITS = {"Mi": MIB, "Gi": GIB}

Resource = dict[str, Any]


def resources(name: str) -> list[Resource]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def pod_of(name: str) -> Resource:
    (found,) = (resource for resource in resources(name) if resource["kind"] in ("DaemonSet", "Deployment"))
    return found["spec"]["template"]["spec"]


def kvtierd_of(pod: Resource) -> Resource:
    (found,) = (c for c in [*pod["containers"], *pod.get("initContainers", [])] if c["name"] == "kvtierd")
    return found


def given_to(name: str) -> dict[str, object]:
    """What kvtierd is given: by its arguments, and by the ConfigMap that they name."""
    given = daemon.parser().parse_args(kvtierd_of(pod_of(name))["args"])
    values: dict[str, object] = {}
    for resource in resources(name):
        if resource["kind"] == "ConfigMap":
            assert str(given.config) == "/etc/kvtier/kvtier.toml"
            values.update(parse_toml(resource["data"]["kvtier.toml"], name))
    return values | dict(pair.split("=", 1) for pair in given.set)


def settings_of(name: str) -> Config:
    return Config(config.DAEMON, given_to(name))


def bytes_of(text: str) -> int:
    return int(text[:-2]) * UNITS[text[-2:]]


KVTIERDS = ["daemonset.yaml", "sidecar.yaml"]
ENGINES = ["engine.yaml", "sidecar.yaml"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_would_take_it(name):
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_manifest_with_a_mistake_is_refused(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((FOLDER / "daemonset.yaml").read_text().replace("hostPath: {path:", "hostPath: {pth:"))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("name", KVTIERDS)
def test_kvtierd_is_not_root_and_may_do_nothing_but_lock_memory(name):
    pod = pod_of(name)
    container = kvtierd_of(pod)
    allowed = container["securityContext"]
    assert allowed["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert (allowed["allowPrivilegeEscalation"], allowed["readOnlyRootFilesystem"]) == (False, True)
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert not {"hostPID", "hostIPC", "hostNetwork"} & set(pod)
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", KVTIERDS)
def test_its_memory_holds_the_arena_and_it_gets_what_it_asks_for(name):
    asked = kvtierd_of(pod_of(name))["resources"]
    assert asked["requests"] == asked["limits"]  # no swap for such a pod
    assert bytes_of(asked["limits"]["memory"]) >= settings_of(name).count("cpu.capacity") + BESIDES_BYTES


@pytest.mark.parametrize("name", KVTIERDS)
def test_it_has_the_time_to_write_what_is_worth_it(name):
    assert pod_of(name)["terminationGracePeriodSeconds"] >= settings_of(name).number("nvme.drain_s") + 30


@pytest.mark.parametrize("name", KVTIERDS)
def test_probes_ask_where_kvtierd_answers(name):
    container, settings = kvtierd_of(pod_of(name)), settings_of(name)
    port = int(settings.text("metrics.listen").rpartition(":")[2])
    assert container["ports"] == [{"name": "metrics", "containerPort": port}]
    assert settings["metrics.allow_remote"]  # the kubelet asks the pod's address
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_finds_the_socket_and_may_use_it(name):
    pod = pod_of(name)
    (engine,) = (container for container in pod["containers"] if container["name"] == "vllm")
    node = "daemonset.yaml" if name == "engine.yaml" else name
    settings, socket = settings_of(node), Path(engine["env"][0]["value"])
    assert (engine["env"][0]["name"], str(socket)) == ("KVTIER_SOCKET", settings.text("server.socket"))
    mounts = [mount["mountPath"] for mount in engine["volumeMounts"]]
    assert any(socket.is_relative_to(mount) for mount in mounts)
    group = settings.text("server.group")
    if group:
        assert int(group) in pod["securityContext"]["supplementalGroups"]
    else:  # one user
        assert kvtierd_of(pod) and "securityContext" in pod


def test_the_sidecar_is_ready_before_the_engine_and_ends_after_it():
    (sidecar,) = pod_of("sidecar.yaml")["initContainers"]
    assert sidecar["restartPolicy"] == "Always" and "startupProbe" in sidecar


@pytest.mark.parametrize("name", KVTIERDS)
def test_every_folder_that_a_setting_names_is_mounted_to_be_written(name):
    container, settings = kvtierd_of(pod_of(name)), settings_of(name)
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    for setting in ("server.socket", "nvme.paths", "cost.state"):
        path = settings.text(setting)
        assert not path or any(Path(path).is_relative_to(mount) for mount in writable), setting


@pytest.mark.parametrize("name", KVTIERDS)
def test_with_these_settings_kvtierd_starts_and_answers_its_probe(name, tmp_path):
    """With other folders, a small arena, and no port."""
    given = {setting: str(value) for setting, value in given_to(name).items()}
    for setting in ("server.socket", "nvme.paths", "cost.state", "encryption.key_file", "metrics.listen"):
        if setting in given:
            given[setting] = str(tmp_path / setting)
    given |= {"cpu.capacity": "64 MiB", "nvme.capacity": "64 MiB", "cost.calibrate_s": "0"}
    if "server.group" in given and os.geteuid():
        given["server.group"] = str(os.getgid())  # only root may give a file to another group
    if "nvme.paths" in given:
        (tmp_path / "nvme.paths").mkdir()
        write_root(tmp_path / "encryption.key_file")
    with KVTierd(tmp_path, given), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as kubelet:
        kubelet.settimeout(PATIENCE_S)
        eventually(lambda: kubelet.connect_ex(given["metrics.listen"]) == 0)
        kubelet.sendall(b"GET /healthz HTTP/1.1\r\nHost: kvtierd\r\n\r\n")
        assert kubelet.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_image_is_built_as_the_linter_wants_it():
    file = make_words.ROOT / "systemd" / "container" / "Dockerfile"
    done = subprocess.run(["hadolint", str(file)], capture_output=True, text=True, check=False, env=WITH_TOOLS)
    assert done.returncode == 0, done.stdout
    assert "\nUSER 970:970\n" in file.read_text()  # as the manifests have it


WITH_TOOLS = {"PATH": str(Path(sys.executable).parent)}
