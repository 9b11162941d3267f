"""The files of `cluster/`: their readers accept them, their versions agree, and a bucket is all that is shared."""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import ValidationError

from pipeline.config.load import read_config
from pipeline.config.sections import Config
from tests.kuberay import RayJob

ROOT = Path(__file__).resolve().parents[2]
MACHINES = ROOT / "cluster" / "ray-cluster.yaml"
JOBS = sorted(ROOT.glob("cluster/rayjob*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = re.search(
    r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-", (ROOT / "cluster/Dockerfile").read_text(), re.MULTILINE
)
PLAIN_OBJECTS = 10**10
"""Bytes of an object store from which on Ray refuses a /dev/shm that is smaller than the store."""


def read(path: Path) -> dict[str, Any]:
    """By the library that Ray reads it with, which follows YAML 1.1 as kubectl does."""
    return yaml.safe_load(path.read_text())


def job(path: Path) -> RayJob:
    return RayJob.model_validate(read(path))


def configuration(command: str) -> Config:
    """Of the part of a command that follows `run.py`."""
    words = shlex.split(command.partition("run.py")[2])
    assert words[0] == "--recipe"
    return read_config(words[1], words[2:])[0]  # without what it asks the bucket


def size(quantity: str) -> int:
    """Bytes of `24Gi`."""
    return int(quantity.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_kubernetes_and_kuberay_accept_the_manifest(path):
    assert job(path).cluster.authOptions.mode == "token"


@pytest.mark.parametrize(
    "steps",
    [["spec", "retries"], ["spec", "rayClusterSpec", "replicas"], ["spec", "rayClusterSpec", "headGroupSpec", "x"]],
)
def test_a_field_that_kuberay_has_not_is_refused(steps):
    manifest = read(JOBS[0])
    place = manifest
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = 1
    with pytest.raises(ValidationError, match="Extra inputs"):
        RayJob.model_validate(manifest)


def test_a_field_that_a_container_has_not_is_refused():
    manifest = copy.deepcopy(read(JOBS[0]))
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumes"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="'volumes' was unexpected"):
        RayJob.model_validate(manifest)


def test_ray_accepts_the_machines():
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    machines = read(MACHINES)
    jsonschema.validate(machines, schema)
    types = machines["available_node_types"]
    assert machines["head_node_type"] in types
    assert {bool(kind["resources"].get("GPU")) for kind in types.values() if "max_workers" in kind} == {True, False}


def test_the_machines_ask_for_a_token_and_have_it():
    """Ray asks for none where RAY_AUTH_MODE is not set and no token lies in the user's home."""
    machines = read(MACHINES)
    assert "-e RAY_AUTH_MODE=token" in machines["docker"]["run_options"]
    assert machines["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    head = MACHINES.read_text().partition("cluster_name:")[0]
    assert head.index("RAY_AUTH_MODE=token && ray get-auth-token --generate") < head.index("ray up ")


@pytest.mark.parametrize(
    ("device", "index"), [("gpu", "none"), ("cpu", "https://download.pytorch.org/whl/cpu")], ids=lambda word: word[:3]
)
def test_the_image_has_the_versions_that_the_tests_ran_with(tmp_path, device, index):
    """Runs the image's own lines, with a pip that tells what it was asked for."""
    text = (ROOT / "cluster/Dockerfile").read_text().replace("\\\n", "")
    assert re.search(r"^COPY .*pyproject\.toml constraints\.txt \./$", text, re.MULTILINE)
    assert text.index("FROM ") < text.rindex("ARG DEVICE\n") < text.index("RUN ")  # an argument ends with its FROM
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "${PIP_EXTRA_INDEX_URL:-none} $*"\n')
    pip.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (line,) = re.findall(r"^RUN (.+)$", text, re.MULTILINE)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "DEVICE": device}
    told = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split()[:2] == [index, "install"]
    assert "--constraint constraints.txt --requirement requirements.txt" in told.stdout
    assert "ray[default,data,train]" in (tmp_path / "requirements.txt").read_text()


def test_image_manifests_and_project_have_one_version_of_ray_and_python():
    release, python = IMAGE[1], f"{IMAGE[2]}.{IMAGE[3]}"
    asked = [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
    asked += [Requirement(line) for line in PROJECT["dependencies"]]
    wanted = [one.specifier for one in asked if one.name == "ray"]
    assert len(wanted) == 2 and all(release in one for one in wanted)
    assert release == version("ray") == re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert {job(path).cluster.rayVersion for path in JOBS} == {release}
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_pod_needs_a_bucket_a_tracking_server_and_a_disk_of_its_own(path):
    manifest = job(path)
    assert {tuple(set(volume) - {"name"}) for pod in manifest.pods for volume in pod["volumes"]} == {("emptyDir",)}
    config = configuration(manifest.spec.entrypoint)
    assert config.store.startswith("s3://") and config.data.path.startswith("s3://")
    assert config.tracking_uri.startswith("http://")
    for pod in manifest.pods:
        (container,) = pod["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "puma"}}]
        assert {entry["name"] for entry in container["env"]} == {"HF_HOME", "PUMA_CACHE"}
        assert all(entry["value"].startswith("/puma/") for entry in container["env"])


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_pod_has_room_for_ray_s_objects(path):
    """Ray takes three tenths of the memory, and no more than /dev/shm holds once that is large."""
    for pod in job(path).pods:
        (container,) = pod["containers"]
        shared = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        wanted = min(0.3 * size(container["resources"]["limits"]["memory"]), PLAIN_OBJECTS)
        assert shared["medium"] == "Memory" and size(shared["sizeLimit"]) >= wanted


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_pods_are_those_that_the_command_asks_for(path):
    manifest, (workers,) = job(path), job(path).cluster.workerGroupSpecs
    cluster = configuration(manifest.spec.entrypoint).cluster
    limits = workers.template["spec"]["containers"][0]["resources"]["limits"]
    gpus = float(limits.get("nvidia.com/gpu", 0))
    assert workers.replicas == workers.minReplicas == workers.maxReplicas == cluster.workers == cluster.actors
    assert gpus == cluster.gpus_per_worker == (0 if "cpu" in path.stem else 1)
    assert float(limits["cpu"]) > cluster.cpus_per_worker
    assert all(pod["containers"][0]["image"].endswith("-cpu") == (not gpus) for pod in manifest.pods)


def test_the_machines_command_is_a_command():
    head = " ".join(
        line.lstrip("# ").rstrip("\\ ") for line in MACHINES.read_text().split("\n# Without")[0].splitlines()
    )
    config = configuration(head)
    gpus = read(MACHINES)["available_node_types"]["gpu"]
    assert config.store.startswith("s3://") and config.cluster.workers <= gpus["max_workers"]


def test_the_image_installs_what_an_index_may_need():
    printed = re.search(r'python -c "(.+?)" >', (ROOT / "cluster/Dockerfile").read_text(), re.DOTALL)[1]
    for extra in re.findall(r"extras\['(\w+)'\]", printed):
        assert PROJECT["optional-dependencies"][extra]
    assert {"lance", "faiss"} <= set(re.findall(r"extras\['(\w+)'\]", printed))
