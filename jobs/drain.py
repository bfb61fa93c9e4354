"""A pod's last words: tell Ray that its node is about to go, and wait for its worker.

The preStop hook of `infra/base/job/rayjob.yaml`. The driver gives the worker nothing
more; it ends the shards in hand, and Ray's processes end when they have nothing to do.
"""

import time

import click
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
    DrainNodeReason,
)
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
from ray.util import get_node_ip_address

_PREEMPTED = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
_POLL_SECONDS = 1.0


@click.command()
@click.option("--seconds", type=int, required=True, help="Until the node is gone.")
@click.option("--address", envvar="RAY_ADDRESS", required=True, help="Of the head.")
@click.option("--node", help="Ray's id of it.  [default: the one at this address]")
def main(seconds: int, address: str, node: str | None) -> None:
    """Drain a node of Ray, and wait until it has nothing to do."""
    client = GcsClient(address=address)
    end = time.monotonic() + seconds
    deadline_ms = time.time_ns() // 1_000_000 + seconds * 1_000
    for name in sorted(_alive(client, node)):
        is_accepted, why = client.drain_node(
            name, _PREEMPTED, "its pod is about to go", deadline_ms
        )
        click.echo(f"{name}: {'draining' if is_accepted else why}")
    while time.monotonic() < end and _alive(client, node):
        time.sleep(_POLL_SECONDS)


def _alive(client: GcsClient, node: str | None) -> set[str]:
    """Return the ids of the nodes that are meant and not gone yet."""
    here = get_node_ip_address()
    infos = client.get_all_node_info(state_filter=GcsNodeInfo.ALIVE).values()
    addresses = {info.node_id.hex(): info.node_manager_address for info in infos}
    wanted = {node} if node else {k for k, v in addresses.items() if v == here}
    return wanted & addresses.keys()


if __name__ == "__main__":
    main()
