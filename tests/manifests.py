"""What can be said of infra/ without a cluster: valid, pinned, restricted, unexposed.

Manifests are what Kustomize makes of them, as `kubectl apply -k` does.

As a script it prints what is wrong and fails; `make infra` runs it so.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import kubernetes_validate
import yaml
from jsonschema import Draft4Validator

from tileseg.cli import nightly, segment

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
KUBERNETES = "1.35"
OPERATOR = "prometheus-operator-0.93.0"
SCHEMAS = {
    kind: ROOT / "tests/schemas" / f"{name}.json.gz"
    for kind, name in {
        "RayJob": "rayjob-kuberay-1.7.0",
        "PodMonitor": f"podmonitor-{OPERATOR}",
        "PrometheusRule": f"prometheusrule-{OPERATOR}",
    }.items()
}
INSTALLED = ("overlays/small", "overlays/large", "watching")
"""What `kubectl apply -k` is for."""
JOBS = ("overlays/small/job", "overlays/large/job", "scene")
"""What `kubectl create -k` is for: a RayJob each."""
GPU = "nvidia.com/gpu"
VOLUMES = ("configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "secret")
COMMANDS = {"segment": segment, "nightly": nightly}


def documents(path):
    """Return the manifests of one file."""
    return list(yaml.safe_load_all(path.read_text()))


def kubectl():
    """Return the program."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return shutil.which("kubectl", path=path) or "kubectl"


@cache
def built(folder):
    """Return the manifests that Kustomize makes of a folder, in infra/ if relative."""
    command = [kubectl(), "kustomize", INFRA / folder]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


def manifests():
    """Return (folder, manifest) of all of infra/."""
    return [
        (folder, manifest) for folder in INSTALLED + JOBS for manifest in built(folder)
    ]


def pinned_ray():
    """Return the version of ray that the image holds."""
    text = (ROOT / "requirements/ray.txt").read_text()
    return re.search(r"^ray(?:\[.*\])?==(\S+)", text, re.MULTILINE)[1]


def faults(manifest):
    """Return what is wrong with one manifest, in words; nothing if it is right."""
    found = _schema(manifest)
    if found:
        return found  # the rest reads what the schema promises
    found = _exposure(manifest)
    for pod in _pods(manifest):
        found += _pod(pod)
    if manifest["kind"] == "RayJob":
        found += _rayjob(manifest["spec"])
    return found


def images(node):
    """Return every image named anywhere below."""
    return {value for key, value in _items(node) if key == "image"}


def command_faults(entrypoint):
    """Return why the entrypoint would not start: no such script, no such option."""
    python, script, *arguments = shlex.split(entrypoint)
    if python != "python" or not (ROOT / script).is_file():
        return [f"{python} {script}: no such script"]
    command = COMMANDS[Path(script).stem]
    try:
        command.make_context(command.name, arguments)
    except click.ClickException as err:
        return [f"{script}: {err.format_message()}"]
    return []


def _schema(manifest):
    kind = manifest["kind"]
    if kind in SCHEMAS:
        errors = Draft4Validator(_schema_of(kind)).iter_errors(manifest)
        return [f"{error.json_path}: {error.message}" for error in errors]
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as err:
        return [f"{'.'.join(map(str, err.path))}: {err.message}"]
    return []


@cache
def _schema_of(kind):
    """Return a CRD's schema in which an unknown field is an error.

    The API server prunes those; kubectl refuses them, and so do we.
    """
    return _closed(json.loads(gzip.decompress(SCHEMAS[kind].read_bytes())))


def _closed(node):
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    is_object = node.get("type") == "object" and "properties" in node
    if is_object and not node.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def _exposure(manifest):
    kind = manifest["kind"]
    found = [f"{image}: not a version" for image in images(manifest) if _moves(image)]
    if kind == "Ingress":
        found.append("an Ingress lets the world in")
    for key, value in _items(manifest):
        if value in ("LoadBalancer", "NodePort"):
            found.append(f"a {value} lets the world in")
        if key in {"hostPort", "nodePort", "enableIngress"} and value:
            found.append(f"{key}: {value} lets the world in")
        if key in {"hostNetwork", "hostPID", "hostIPC"} and value:
            found.append(f"{key}: the node is not ours")
    return found


def _moves(image):
    """Say whether what an image's name means can change."""
    tag = image.rpartition("/")[2].partition(":")[2]
    return not re.search(r"\d", tag) and "@sha256:" not in image


def _pod(pod):
    found = []
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        found.append("pod may run as root")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("pod without seccomp profile RuntimeDefault")
    found += [
        f"volume {volume['name']}: of a kind that is not restricted"
        for volume in pod.get("volumes", ())
        if not volume.keys() <= {"name", *VOLUMES}
    ]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        found += _container(container["name"], container)
    return found


def _container(name, container):
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    found = []
    if container.get("securityContext") != wanted:
        found.append(f"{name}: securityContext must be {wanted}")
    if "/tmp" not in {item["mountPath"] for item in container.get("volumeMounts", [])}:  # noqa: S108
        found.append(f"{name}: no /tmp to write to")
    return found


def _rayjob(spec):
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    workers = cluster["workerGroupSpecs"]
    found = command_faults(spec["entrypoint"])
    if cluster.get("rayVersion") != pinned_ray():
        found.append(f"rayVersion is not ray's in requirements/: {pinned_ray()}")
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("Ray without token authentication")
    # KubeRay adds the container, so no pod template shows it.
    found += _container("autoscaler", cluster.get("autoscalerOptions", {}))
    if head["rayStartParams"].get("num-cpus") != "0":
        found.append("actors could be placed on the head")
    wanted = sum(group["maxReplicas"] for group in workers)
    if not re.search(rf"--workers {wanted}\b", spec["entrypoint"]):
        found.append(f"the job does not ask for all of {wanted} workers")
    pods = [group["template"]["spec"] for group in workers]
    limits = [pod["containers"][0]["resources"]["limits"] for pod in pods]
    gpus = int("--device cuda" in spec["entrypoint"])
    if any(limit.get(GPU, 0) != gpus for limit in limits):
        found.append("a worker is one GPU, or none with --device cpu")
    pods.append(spec["submitterPodTemplate"]["spec"])
    if any(pod.get("automountServiceAccountToken") is not False for pod in pods):
        found.append("worker or submitter with a service account token")
    return found


def _items(node):
    """Yield every (key, value) at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from _items(value)
    elif isinstance(node, list):
        for item in node:
            yield from _items(item)


def _pods(node):
    """Return every pod's spec at any depth."""
    below = [value for _, value in _items(node) if isinstance(value, dict)]
    return [value for value in below if "containers" in value]


def main():
    """Print every fault as file: kind: fault; say how many manifests are right."""
    wrong = 0
    for name, manifest in manifests():
        for fault in faults(manifest):
            click.echo(f"{name}: {manifest['kind']}: {fault}", err=True)
            wrong += 1
    if not wrong:
        click.echo(f"infra: {len(manifests())} manifests are right")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
