"""infra/ and the Dockerfile hold what they promise; what would not is found."""

import json
import os
import re
import shutil
import subprocess
import time

import kube_api
import pytest
import yaml
from manifests import (
    GPU,
    INFRA,
    INSTALLED,
    JOBS,
    ROOT,
    built,
    command_faults,
    documents,
    faults,
    images,
    kubectl,
    manifests,
)

from tileseg import __version__
from tileseg.grid import Run
from tileseg.nights.nightly_file import read_night
from tileseg.plans.budget import budget_of
from tileseg.plans.preflight import RESERVE, room
from tileseg.plans.task import prepare
from tileseg.settings import Job

OVERLAYS = ("small", "large")
MANIFESTS = manifests()
RAY = {folder: built(folder)[0] for folder in JOBS}
POLICIES = [item for _, item in MANIFESTS if item["kind"] == "NetworkPolicy"]
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def the(kind, folder, name=None):
    """Return the one manifest of a kind that a folder gives."""
    [found] = [
        item
        for item in built(folder)
        if item["kind"] == kind and name in (None, item["metadata"]["name"])
    ]
    return found


def number(text):
    """Return the bytes that a quantity says."""
    return int(text[:-2]) * UNITS[text[-2:]]


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(item, id=f"{name}-{item['kind']}-{number}")
        for number, (name, item) in enumerate(MANIFESTS)
    ],
)
def test_a_manifest_has_no_fault(manifest):
    assert faults(manifest) == []


def _rayjob(change):
    """Return the large cluster's RayJob, broken by a function of it."""
    broken = json.loads(json.dumps(RAY["overlays/large/job"]))
    change(broken["spec"], broken["spec"]["rayClusterSpec"])
    return broken


def _worker(cluster):
    return cluster["workerGroupSpecs"][0]["template"]["spec"]


def _set(node, **values):
    node.update(values)


BREAKAGES = {
    "unexpected": lambda spec, _: _set(spec, shutdownWhenDone=True),
    "is not of type": lambda spec, _: _set(spec, backoffLimit="two"),
    "'headGroupSpec' is a required": lambda _, cluster: cluster.pop("headGroupSpec"),
    "no such option": lambda spec, _: _set(
        spec, entrypoint="python jobs/segment.py --imput a --workers 8"
    ),
    "no such script": lambda spec, _: _set(
        spec, entrypoint="python jobs/segmint.py --workers 8"
    ),
    "all of 9 workers": lambda _, cluster: _set(
        cluster["workerGroupSpecs"][0], maxReplicas=9
    ),
    "rayVersion": lambda _, cluster: _set(cluster, rayVersion="2.59.0"),
    "without token": lambda _, cluster: cluster.pop("authOptions"),
    "autoscaler: securityContext": lambda _, cluster: cluster["autoscalerOptions"].pop(
        "securityContext"
    ),
    "on the head": lambda _, cluster: cluster["headGroupSpec"]["rayStartParams"].pop(
        "num-cpus"
    ),
    "service account": lambda _, cluster: _worker(cluster).pop(
        "automountServiceAccountToken"
    ),
    "one GPU": lambda _, cluster: _worker(cluster)["containers"][0]["resources"][
        "limits"
    ].pop("nvidia.com/gpu"),
    "as root": lambda _, cluster: _worker(cluster)["securityContext"].pop(
        "runAsNonRoot"
    ),
    "seccomp": lambda _, cluster: _worker(cluster)["securityContext"].pop(
        "seccompProfile"
    ),
    "ray-worker: securityContext": lambda _, cluster: _worker(cluster)["containers"][0][
        "securityContext"
    ]["capabilities"].update(add=["SYS_ADMIN"]),
    "no /tmp": lambda _, cluster: _worker(cluster)["containers"][0].pop("volumeMounts"),
    "latest: not a version": lambda _, cluster: _set(
        _worker(cluster)["containers"][0], image="registry.example.com:5000/a:latest"
    ),
    "tileseg: not a version": lambda _, cluster: _set(
        _worker(cluster)["containers"][0], image="registry.example.com:5000/tileseg"
    ),
    "LoadBalancer lets": lambda _, cluster: _set(
        cluster["headGroupSpec"], serviceType="LoadBalancer"
    ),
    "of a kind": lambda _, cluster: _worker(cluster)["volumes"].append(
        {"name": "node", "hostPath": {"path": "/"}}
    ),
    "hostNetwork": lambda _, cluster: _set(_worker(cluster), hostNetwork=True),
    "hostPort": lambda _, cluster: _set(
        _worker(cluster)["containers"][0], ports=[{"containerPort": 1, "hostPort": 1}]
    ),
}


@pytest.mark.parametrize("fault", BREAKAGES)
def test_what_is_broken_is_found(fault):
    """The negative control: a checker that finds nothing would pass all the above."""
    found = faults(_rayjob(BREAKAGES[fault]))

    assert any(fault.lower() in line.lower() for line in found), found


@pytest.mark.parametrize("kind", ["Service", "Ingress", "CronJob"])
def test_a_broken_core_manifest_is_found(kind):
    versions = {"Service": "v1", "Ingress": "networking.k8s.io/v1"}
    manifest = {"apiVersion": versions.get(kind, "batch/v1"), "kind": kind}
    manifest["spec"] = {"type": "NodePort", "whenever": "0 1 * * *"}

    assert faults(manifest)


def test_one_image_of_this_version_everywhere():
    found = set.union(*(images(item) for item in RAY.values()))
    text = (ROOT / "Dockerfile").read_text() + (INFRA / "README.md").read_text()

    assert len(found) == 2  # for CPUs, for GPUs
    for image in found:
        assert image.rpartition(":")[2].startswith(f"{__version__}-")
        assert image in text


def _templates(spec):
    """Return the pods of a RayJob by what they are."""
    cluster = spec["rayClusterSpec"]
    return {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
    }


@pytest.mark.parametrize("folder", JOBS)
def test_the_pods_run_as_the_user_of_the_image(folder):
    user, group = re.search(
        r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    ).groups()
    templates = _templates(RAY[folder]["spec"]).values()
    contexts = [template["spec"]["securityContext"] for template in templates]

    assert int(user) > 0
    assert {(int(user), int(group))} == {
        (context["runAsUser"], context["runAsGroup"]) for context in contexts
    }


def test_both_stages_have_one_base_with_a_full_version():
    text = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)

    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.search(r":3\.11\.\d+-slim", bases[0])


def test_every_manifest_is_part_of_something():
    """What no kustomization names would never be applied."""
    files = {path for path in INFRA.rglob("*.yaml") if "rules" not in path.name}
    named = {path for path in files if path.name == "kustomization.yaml"}
    for path in set(named):
        [text] = documents(path)
        for name in text.get("resources", []):
            below = (path.parent / name).resolve()
            named.add(below / "kustomization.yaml" if below.is_dir() else below)

    assert files == named
    assert {(INFRA / name / "kustomization.yaml") for name in INSTALLED + JOBS} <= named


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_of_the_cron_job_makes_the_job_that_is_in_the_overlay(
    overlay, tmp_path
):
    """Put together from a mounted ConfigMap, laid out as the kubelet does."""
    folder = f"overlays/{overlay}"
    pod = the("CronJob", folder)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [volume] = [item["configMap"] for item in pod["volumes"] if "configMap" in item]
    config = the("ConfigMap", folder, volume["name"])
    for item in volume["items"]:
        path = tmp_path / "..2026" / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config["data"][item["key"]])
    (tmp_path / "..data").symlink_to("..2026")
    for name in {item["path"].partition("/")[0] for item in volume["items"]}:
        (tmp_path / name).symlink_to(f"..data/{name}")
    [create] = [it for it in pod["initContainers"] if it["name"] == "create"]
    verb, option = create["args"]
    _, _, path = option.partition("=/manifest/")

    assert verb == "create"
    assert {item["key"] for item in volume["items"]} == config["data"].keys()
    assert built(tmp_path / path) == built(f"{folder}/job")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_nights_file_is_where_the_job_looks(overlay):
    """And its night ends by itself, before the attempt is ended."""
    spec = RAY[f"overlays/{overlay}/job"]["spec"]
    [path] = re.findall(r"--config (\S+)", spec["entrypoint"])
    head = _templates(spec)["head"]["spec"]
    mounts = {it["name"]: it for it in head["containers"][0]["volumeMounts"]}
    [volume] = [it for it in head["volumes"] if "configMap" in it]
    config = the("ConfigMap", f"overlays/{overlay}", volume["configMap"]["name"])
    name = path.removeprefix(f"{mounts[volume['name']]['mountPath']}/")
    file = INFRA / "overlays" / overlay / "nightly.toml"

    assert config["data"] == {name: file.read_text()}
    night = read_night(file).night
    begun = spec["preRunningDeadlineSeconds"] + night.hours * 3600
    # What is in hand then, the Collection and the page of many scenes.
    assert begun + 1200 < spec["activeDeadlineSeconds"]


def test_the_cron_job_may_touch_no_other_job():
    for overlay in OVERLAYS:
        creating, rest = the("Role", f"overlays/{overlay}")["rules"]
        [nightly] = built(f"overlays/{overlay}/job")

        assert creating["verbs"] == ["create"]
        assert rest["resourceNames"] == [nightly["metadata"]["name"]]


def test_the_night_ends_before_the_next_begins():
    """Every attempt has its deadline anew, and the pod that waits outlives them all."""
    cron = the("CronJob", "overlays/small")["spec"]
    for overlay in OVERLAYS:
        [nightly] = built(f"overlays/{overlay}/job")
        attempts = 1 + nightly["spec"]["backoffLimit"]
        night = attempts * nightly["spec"]["activeDeadlineSeconds"]
        job = cron["jobTemplate"]["spec"]
        arguments = waiting("wait")
        [timeout] = [int(item[10:-1]) for item in arguments if "--timeout" in item]

        assert cron["concurrencyPolicy"] == "Forbid"
        assert night < timeout < job["activeDeadlineSeconds"] < 24 * 60 * 60


def waiting(name):
    """Return the arguments of one of the nightly pod's containers."""
    job = the("CronJob", "overlays/small")["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    [found] = [
        item
        for item in (*pod["initContainers"], *pod["containers"])
        if item["name"] == name
    ]
    return found["args"]


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_the_nightly_pod_ends_with_the_job_and_as_it_did(end, tmp_path):
    """After the last attempt, and at once: KubeRay says so of jobs that failed, too."""
    environment = {"HOME": str(tmp_path), "KUBECONFIG": os.devnull}
    environment["KUBE_FEATURE_WatchListClient"] = "false"
    with kube_api.serve() as cluster:
        words = [kubectl(), "--server", cluster.address, "--namespace", "tileseg"]
        cluster.say(jobDeploymentStatus="Initializing")
        pod = subprocess.Popen([*words, *waiting("wait")], env=environment)
        cluster.wait_for_a_watcher()
        cluster.say(jobDeploymentStatus="Retrying")
        with pytest.raises(subprocess.TimeoutExpired):
            pod.wait(1)
        cluster.say(jobDeploymentStatus=end, endTime="2026-06-01T03:00:00Z")
        assert pod.wait(60) == 0

        words += waiting("judge")
        judged = subprocess.run(words, env=environment, timeout=60, check=False)

    assert judged.returncode == (end == "Failed")


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_nightly_pod_ends_at_once_if_the_job_is_refused(is_refused, tmp_path):
    """By KubeRay, for how it is written; it says why. Such a job has no end."""
    environment = {"HOME": str(tmp_path), "KUBECONFIG": os.devnull}
    environment["KUBE_FEATURE_WatchListClient"] = "false"
    status = {"jobDeploymentStatus": "Initializing", "message": ""}
    status["startTime"] = "2026-06-01T01:00:00Z"
    if is_refused:
        status = {"jobDeploymentStatus": "ValidationFailed", "message": "no entrypoint"}
    with kube_api.serve() as cluster:
        words = [kubectl(), "--server", cluster.address, "--namespace", "tileseg"]
        pipe = subprocess.PIPE
        command = [*words, *waiting("seen")]
        pod = subprocess.Popen(command, env=environment, stdout=pipe, text=True)
        cluster.wait_for_a_watcher()
        cluster.say(**status)
        said, _ = pod.communicate(timeout=60)
        words += waiting("accepted")
        accepted = subprocess.run(words, env=environment, timeout=60, check=False)

    assert pod.returncode == 0
    assert said.split(" ", 1) == [status["jobDeploymentStatus"], status["message"]]
    assert accepted.returncode == is_refused


def test_everything_is_denied_that_is_not_allowed():
    denied = [item["spec"] for item in POLICIES if item["spec"]["podSelector"] == {}]

    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in denied


def test_only_operator_and_prometheus_come_in_from_outside_each_to_one_port():
    """The operator to the Jobs API, Prometheus, if it is installed, to the metrics."""
    wanted = {"overlays/small": [8265], "overlays/large": [8265], "watching": [8080]}
    for folder, wanted_ports in wanted.items():
        policies = [it["spec"] for it in built(folder) if it["kind"] == "NetworkPolicy"]
        rules = [rule for spec in policies for rule in spec.get("ingress", [])]
        peers = [(peer, rule.get("ports")) for rule in rules for peer in rule["from"]]
        outside = [
            (peer, ports) for peer, ports in peers if set(peer) != {"podSelector"}
        ]

        assert all(peer["podSelector"]["matchLabels"] for peer, _ in peers)
        for peer, _ in outside:
            assert set(peer) == {"podSelector", "namespaceSelector"}
            assert peer["namespaceSelector"]["matchLabels"]
        ports = [port for _, ports in outside for port in ports]
        assert ports == [{"protocol": "TCP", "port": port} for port in wanted_ports]


def test_what_goes_out_goes_to_no_private_network():
    [egress] = the("NetworkPolicy", "overlays/large", "https-outside")["spec"]["egress"]
    [peer] = egress["to"]

    assert egress["ports"] == [{"protocol": "TCP", "port": 443}]
    assert {"10.0.0.0/8", "169.254.0.0/16"} <= set(peer["ipBlock"]["except"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_selectors_find_our_pods(overlay):
    """A label that nothing carries would allow nothing, and nobody would be told."""
    templates = _templates(RAY[f"overlays/{overlay}/job"]["spec"])
    cron = the("CronJob", f"overlays/{overlay}")
    templates["nightly"] = cron["spec"]["jobTemplate"]["spec"]["template"]
    component = "app.kubernetes.io/component"

    assert {name: name for name in templates} == {
        name: template["metadata"]["labels"][component]
        for name, template in templates.items()
    }


def test_workers_alone_are_on_nodes_that_may_go():
    """By whichever label: workers where one of them says spot, the head where none."""
    templates = _templates(RAY["overlays/large/job"]["spec"])
    terms = {}
    for name in ("head", "worker"):
        affinity = templates[name]["spec"]["affinity"]["nodeAffinity"]
        required = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        terms[name] = [it["matchExpressions"] for it in required["nodeSelectorTerms"]]
    [all_of] = terms["head"]
    any_of = [expression for [expression] in terms["worker"]]

    assert {it["operator"] for it in any_of} == {"In"}
    assert all_of == [{**it, "operator": "NotIn"} for it in any_of]
    assert "affinity" not in _templates(RAY["scene"]["spec"])["worker"]["spec"]


@pytest.mark.parametrize("folder", JOBS)
def test_a_worker_has_time_to_end_what_it_has_in_hand(folder):
    pod = _templates(RAY[folder]["spec"])["worker"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    python, script, option, seconds = hook

    assert (python, option) == ("python", "--seconds")
    assert (ROOT / script.removeprefix("/app/")).is_file()  # as the Dockerfile has it
    assert 30 <= int(seconds) < pod["terminationGracePeriodSeconds"] - 10


@pytest.mark.parametrize("folder", JOBS)
def test_secrets_are_named_and_nowhere_written(folder):
    for name in ("head", "worker"):
        pod = _templates(RAY[folder]["spec"])[name]["spec"]
        [source] = pod["containers"][0]["envFrom"]

        assert source == {"secretRef": {"name": "tileseg-secrets", "optional": True}}
        assert "env" not in pod["containers"][0]
    assert not any(item["kind"] == "Secret" for _, item in MANIFESTS)


@pytest.mark.parametrize(
    ("age", "is_alive"), [(None, True), (0, True), (59, True), (61, False)]
)
def test_the_probe_ends_a_driver_that_hangs(age, is_alive, tmp_path):
    """Before and after a job there is no heartbeat, and nothing to end."""
    spec = RAY["overlays/large/job"]["spec"]
    head = _templates(spec)["head"]["spec"]["containers"][0]
    command = head["livenessProbe"]["exec"]["command"]
    [file] = re.findall(r"--heartbeat (\S+)", spec["entrypoint"])
    beat = tmp_path / "beat"
    if age is not None:
        beat.touch()
        os.utime(beat, (time.time() - 60 * age,) * 2)

    words = [word.replace(file, str(beat)) for word in command]
    answer = subprocess.run(words, check=False)

    assert (answer.returncode == 0) is is_alive


@pytest.mark.parametrize("folder", JOBS)
def test_the_probe_waits_longer_than_the_job_does(folder):
    head = _templates(RAY[folder]["spec"])["head"]["spec"]["containers"][0]
    [minutes] = re.findall(r"-mmin -(\d+)", str(head["livenessProbe"]))

    assert int(minutes) * 60 > Job(input="a.tif").wait


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example scene's task: what the estimate of `--dry-run` is made from."""
    scene = str(ROOT / "examples" / "itaipu.tif")
    output = str(tmp_path_factory.mktemp("example") / "out")
    return prepare(Job(input=scene, output=output))


# Of a worker's pod besides the estimate, in bytes: Python, torch and the loaded network
# (on a GPU with CUDA's libraries), and Ray's own processes.
LOADED = {"cpu": 1.5e9, "cuda": 5e9}


@pytest.mark.parametrize("folder", JOBS)
def test_a_workers_memory_holds_the_estimate(folder, example):
    """Of a scene of any size: columns are cut so that it grows no more."""
    spec = RAY[folder]["spec"]
    device = "cuda" if "--device cuda" in spec["entrypoint"] else "cpu"
    resolved = {
        "cpu": {"device": "cpu", "precision": "fp32", "batch_size": 16},
        "cuda": {"device": "cuda:0", "precision": "bf16", "batch_size": 256},
    }[device]
    runs = example.runs(list(Run(example.grid.shape)), 1)
    estimate = budget_of(example, runs, resolved).host_mb * 1e6
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    store = int(group["rayStartParams"]["object-store-memory"])
    [shared] = [it["emptyDir"] for it in pod["volumes"] if it["name"] == "shm"]

    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert number(resources["requests"]["memory"]) > sum(
        (LOADED[device], estimate, store, number(shared["sizeLimit"]))
    )
    assert resources["limits"].get(GPU, 0) == (device == "cuda")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_disks_hold_the_largest_scene(overlay):
    """As preflight counts it, on the volume where the job has its work."""
    manifest = RAY[f"overlays/{overlay}/job"]
    pixels = int(manifest["metadata"]["annotations"]["tileseg/largest-scene-pixels"])
    results, shards = room(pixels)
    if overlay == "large":  # S3: products are made in the head's /tmp
        pod = _templates(manifest["spec"])["head"]["spec"]
        [volume] = [it["ephemeral"] for it in pod["volumes"] if it["name"] == "tmp"]
        claim, needed = volume["volumeClaimTemplate"]["spec"], results
    else:
        claim = the("PersistentVolumeClaim", "overlays/small")["spec"]
        needed = results + shards

    assert number(claim["resources"]["requests"]["storage"]) > RESERVE * needed


def test_one_node_with_a_gpu_and_an_image_by_digest(tmp_path):
    """As the comment in the overlay and the README say it."""
    copy = tmp_path / "infra"
    shutil.copytree(INFRA, copy)
    file = copy / "overlays/small/job/kustomization.yaml"
    text = file.read_text()
    assert "components: [../../../base/gpu]" in text
    text = text.replace("--device cpu", "--device cuda")
    image = "{name: registry.example.com/tileseg, newName: ours/tileseg, digest: 'D'}"
    image = image.replace("D", f"sha256:{'0' * 64}")
    lines = ["components: [../../../base/gpu]", f"images: [{image}]"]
    file.write_text("\n".join([text, *lines]))

    [manifest] = built(copy / "overlays/small/job")

    assert faults(manifest) == []
    assert {image.partition("@")[0] for image in images(manifest)} == {"ours/tileseg"}


@pytest.mark.parametrize(("overlay", "had"), [("small", 0), ("large", 1)])
def test_what_may_go_out_is_a_line_of_the_overlay(overlay, had, tmp_path):
    """To the world, or to servers of one's own; from head and workers alone."""
    copy = tmp_path / "infra"
    shutil.copytree(INFRA, copy)
    file = copy / "overlays" / overlay / "kustomization.yaml"
    own = yaml.safe_load(file.read_text())
    assert len(own.get("components", [])) == had
    own["components"] = [f"../../egress/{name}" for name in ("public", "private")]
    file.write_text(yaml.safe_dump(own))

    found = built(file.parent)

    named = {it["metadata"]["name"]: it for it in found}
    assert [faults(it) for it in found] == [[]] * len(found)
    for name in ("https-outside", "servers-within"):
        assert named[name]["metadata"]["namespace"] == "tileseg"
        chosen = named[name]["spec"]["podSelector"]["matchLabels"]
        assert chosen == {"ray.io/is-ray-node": "yes"}
        assert all(rule["ports"] for rule in named[name]["spec"]["egress"])


def test_pods_take_the_rights_of_an_account_as_the_readme_says(tmp_path):
    text = (INFRA / "README.md").read_text()
    [block] = re.findall(
        r"^ +- target: \{kind: RayJob\}\n(?: .*\n)+", text, re.MULTILINE
    )
    copy = tmp_path / "infra"
    shutil.copytree(INFRA, copy)
    file = copy / "overlays/large/job/kustomization.yaml"
    own = yaml.safe_load(file.read_text())
    own["patches"] += yaml.safe_load(block)
    file.write_text(yaml.safe_dump(own))

    [manifest] = built(file.parent)

    templates = _templates(manifest["spec"])
    accounts = {
        name: it["spec"].get("serviceAccountName") for name, it in templates.items()
    }
    assert faults(manifest) == []
    assert accounts == {
        "submitter": None,
        "head": "tileseg-data",
        "worker": "tileseg-data",
    }
    assert "serviceaccount tileseg-data -n tileseg" in text


def test_the_readme_submits_what_the_command_line_takes():
    text = re.sub(r"\\\n\s*", "", (INFRA / "README.md").read_text())
    commands = re.findall(r"python jobs/\S+\.py --[^\n`]*", text)

    assert commands
    assert [command_faults(command) for command in commands] == [[]] * len(commands)
