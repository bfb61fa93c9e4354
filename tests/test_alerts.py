"""Alerts and dashboard ask for what is told: infra/watching/ against `metrics.py`."""

import json
import shutil
import subprocess

import promql_parser as promql
import pytest
from manifests import INFRA, documents

from tileseg.base.metrics import METRICS

WATCHING = INFRA / "watching"
[RULES] = documents(WATCHING / "rules.yaml")
DASHBOARD = json.loads((WATCHING / "dashboard.json").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
SERIES = {metric.series: metric for metric in METRICS.values()}
FOREIGN = {"kube_cronjob_status_last_successful_time"}  # kube-state-metrics'
# Of nodes that a query is made of: the fields in which there are more.
FIELDS = ("expr", "lhs", "rhs", "args", "param", "vector_selector")
QUERIES = [rule["expr"] for rule in ALERTS] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


def selectors(node):
    """Yield what a query selects, at any depth."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for item in node if isinstance(node, list) else []:
        yield from selectors(item)
    for name in FIELDS:
        if (below := getattr(node, name, None)) is not None:
            yield from selectors(below)


@pytest.mark.parametrize("query", sorted(set(QUERIES)))
def test_a_query_asks_for_what_there_is(query):
    """A series that nobody writes would make an alert that never comes."""
    found = list(selectors(promql.parse(query.replace("$service", ".*"))))

    assert found
    for selector in found:
        assert selector.name in SERIES.keys() | FOREIGN
        labels = {matcher.name for matcher in selector.matchers.matchers}
        if selector.name in SERIES:
            assert labels <= {"service", SERIES[selector.name].label}


def test_selectors_are_found_at_any_depth():
    """The negative control: whatever is not seen would be let through."""
    query = "sum(rate(a[5m])) / (1 - b) > 3 and on() max_over_time((-c)[1h:5m]) > 0"

    assert {it.name for it in selectors(promql.parse(query))} == {"a", "b", "c"}


def test_a_counter_is_asked_how_it_grows():
    """Its value is what has been since it was begun, which tells nothing."""
    for query in QUERIES:
        for name, metric in SERIES.items():
            if metric.kind == "counter" and f"{name}{{" in query:
                assert any(
                    word in query for word in ("rate(", "increase(", "restarts_total")
                ), query


def test_the_operators_rules_are_the_files():
    [manifest] = documents(WATCHING / "prometheusrule.yaml")

    assert manifest["spec"] == RULES


def test_an_alert_says_what_and_where_to_look():
    names = [rule["alert"] for rule in ALERTS]

    assert len(set(names)) == len(names)
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_the_dashboard_is_one_that_grafana_takes():
    """Panels on its grid of 24 columns, none over another, each with its queries."""
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells
        taken |= cells
        assert panel["type"] in ("stat", "timeseries")
        assert panel["targets"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert {"source", "service"} == {
        it["name"] for it in DASHBOARD["templating"]["list"]
    }
    assert DASHBOARD["schemaVersion"] >= 39


def test_everything_told_of_a_night_is_shown_or_alerted():
    """What nobody looks at need not be told; bytes of shard files are for scaling."""
    said = " ".join(QUERIES)

    unseen = {name for name in SERIES if name not in said}
    assert unseen == {
        "tileseg_scenes_total",
        "tileseg_scene_seconds",
        "tileseg_written_bytes_total",
    }


@pytest.mark.skipif(not shutil.which("promtool"), reason="there is no promtool")
@pytest.mark.parametrize(
    "words", [["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]]
)
def test_prometheus_own_tool_agrees(words):
    answer = subprocess.run(
        [shutil.which("promtool"), *words],
        cwd=WATCHING,
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout + answer.stderr
