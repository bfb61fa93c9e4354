"""infra/ and the Dockerfile hold what they promise; what would not is found."""

import json
import re

import pytest
from manifests import INFRA, ROOT, command_faults, documents, faults, images, manifests

from tileseg import __version__

MANIFESTS = manifests()
RAY = [item for name, item in MANIFESTS if item["kind"] == "RayJob"]
POLICIES = [item for name, item in MANIFESTS if item["kind"] == "NetworkPolicy"]


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
    """Return the RayJob of rayjob.yaml, broken by a function of it."""
    [manifest] = documents(INFRA / "rayjob.yaml")
    # By way of JSON, since what YAML's anchors share would all change at once.
    broken = json.loads(json.dumps(manifest))
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
        spec, entrypoint="python jobs/segment.py --imput a --workers 4"
    ),
    "no such script": lambda spec, _: _set(
        spec, entrypoint="python jobs/segmint.py --workers 4"
    ),
    "all of 8 workers": lambda _, cluster: _set(
        cluster["workerGroupSpecs"][0], maxReplicas=8
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


def test_the_nightly_job_is_the_other_but_for_name_and_command():
    specs = [dict(item["spec"]) for item in RAY]
    entrypoints = [spec.pop("entrypoint") for spec in specs]

    assert len(specs) == len(set(entrypoints)) == 2
    assert specs[0] == specs[1]


def test_one_image_of_this_version_everywhere():
    [image] = set.union(*(images(item) for item in RAY))

    assert image.rpartition(":")[2].startswith(f"{__version__}-")
    assert image in (ROOT / "Dockerfile").read_text()


def test_the_pods_run_as_the_user_of_the_image():
    user, group = re.search(
        r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    ).groups()
    contexts = [
        template["spec"]["securityContext"]
        for item in RAY
        for template in (
            item["spec"]["submitterPodTemplate"],
            item["spec"]["rayClusterSpec"]["headGroupSpec"]["template"],
            item["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
        )
    ]

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


def test_all_of_infra_is_installed_but_the_jobs():
    """A manifest that Kustomize does not know of would never be applied."""
    [kustomization] = documents(INFRA / "kustomization.yaml")
    files = {path.name for path in INFRA.glob("*.yaml")}
    [generated] = kustomization["configMapGenerator"]
    names = {name for name, _ in MANIFESTS}

    assert set(kustomization["resources"]) == names - {"rayjob.yaml", "nightly.yaml"}
    assert generated["files"] == ["nightly.yaml"]
    assert files == names | {"kustomization.yaml"}


def test_the_cron_job_mounts_the_nightly_job_and_may_touch_no_other():
    [kustomization] = documents(INFRA / "kustomization.yaml")
    cron, _, role, _ = documents(INFRA / "cronjob.yaml")
    [nightly] = documents(INFRA / "nightly.yaml")
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    mounted = [item["configMap"]["name"] for item in pod["volumes"][1:]]
    creating, rest = role["rules"]

    assert mounted == [kustomization["configMapGenerator"][0]["name"]]
    assert creating["verbs"] == ["create"]
    assert rest["resourceNames"] == [nightly["metadata"]["name"]]


def test_the_night_ends_before_the_next_begins():
    """Every attempt has its deadline anew, and the pod that waits outlives them all."""
    cron = documents(INFRA / "cronjob.yaml")[0]["spec"]
    [nightly] = documents(INFRA / "nightly.yaml")
    attempts = 1 + nightly["spec"]["backoffLimit"]
    night = attempts * nightly["spec"]["activeDeadlineSeconds"]
    job = cron["jobTemplate"]["spec"]
    arguments = job["template"]["spec"]["containers"][0]["args"]
    [timeout] = [int(item[10:-1]) for item in arguments if "--timeout" in item]

    assert cron["concurrencyPolicy"] == "Forbid"
    assert night < timeout < job["activeDeadlineSeconds"] < 24 * 60 * 60


def test_everything_is_denied_that_is_not_allowed():
    denied = [item["spec"] for item in POLICIES if item["spec"]["podSelector"] == {}]

    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in denied


def test_only_the_operator_comes_in_from_outside_and_only_to_the_jobs_api():
    rules = [rule for item in POLICIES for rule in item["spec"].get("ingress", [])]
    peers = [(peer, rule.get("ports")) for rule in rules for peer in rule["from"]]
    outside = [(peer, ports) for peer, ports in peers if set(peer) != {"podSelector"}]
    [(operator, ports)] = outside

    assert all(peer["podSelector"]["matchLabels"] for peer, _ in peers)
    assert set(operator) == {"podSelector", "namespaceSelector"}
    assert operator["namespaceSelector"]["matchLabels"]
    assert ports == [{"protocol": "TCP", "port": 8265}]


def test_the_selectors_find_our_pods():
    """A label that nothing carries would allow nothing, and nobody would be told."""
    [spec] = [item["spec"] for item in RAY if "name" not in item["metadata"]]
    cluster = spec["rayClusterSpec"]
    cron = documents(INFRA / "cronjob.yaml")[0]
    templates = {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "nightly": cron["spec"]["jobTemplate"]["spec"]["template"],
    }
    component = "app.kubernetes.io/component"

    assert {name: name for name in templates} == {
        name: template["metadata"]["labels"][component]
        for name, template in templates.items()
    }


def test_the_readme_submits_what_the_command_line_takes():
    text = re.sub(r"\\\n\s*", "", (INFRA / "README.md").read_text())
    commands = re.findall(r"python jobs/\S+\.py --[^\n`]*", text)

    assert commands
    assert [command_faults(command) for command in commands] == [[]] * len(commands)
