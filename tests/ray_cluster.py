"""A Ray cluster on this machine, in a process of its own: a head that holds no replica, and workers with one CPU each.

    python tests/ray_cluster.py 2        # prints its address; "replica", "node" on a line kills one, "freeze" stops a
    replica, "thaw" lets it go on, and it is printed; so it is with workers that carry out a part of some work

Ends with its standard input.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

TITLES = b"ray::Replica", b"ray::_carry_out"  # as Ray calls their processes while they are at it
MEMORY = 80_000_000  # [bytes] of each node's object store


def replicas(node):
    """Process ids of the replicas that run on a node."""
    raylet = node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid
    children = [
        pid for task in Path(f"/proc/{raylet}/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    return [int(pid) for pid in children if Path("/proc", pid, "cmdline").read_bytes().startswith(TITLES)]


def main():
    cluster = Cluster()
    for cpus in [0, *[1] * int(sys.argv[1])]:
        cluster.add_node(num_cpus=cpus, object_store_memory=MEMORY, include_dashboard=False)
    print(cluster.address, flush=True)
    frozen = []
    for line in sys.stdin:
        while (node := next((node for node in cluster.worker_nodes if replicas(node)), None)) is None:
            time.sleep(0.05)
        pids = replicas(node)
        if line.strip() == "replica":
            os.kill(pids[0], signal.SIGKILL)
        elif line.strip() == "freeze":
            frozen = pids
            os.kill(frozen[0], signal.SIGSTOP)
        elif line.strip() == "thaw":
            os.kill(frozen[0], signal.SIGCONT)
        elif line.strip() == "node":
            cluster.remove_node(node, allow_graceful=False)
        print(line.strip(), *pids, flush=True)
    until = time.monotonic() + 20
    while left := [pid for node in cluster.worker_nodes for pid in replicas(node)]:
        if time.monotonic() > until:
            print("left", *left, flush=True)
            break
        time.sleep(0.1)
    cluster.shutdown()


if __name__ == "__main__":
    main()
