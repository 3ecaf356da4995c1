"""A robot's service that somebody wrote from skills.proto: grpc's own server, with none of its settings changed.

python tests/stock_server.py          # in a process of its own; prints its address
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc


class Drives(skills_pb2_grpc.RobotServiceServicer):
    """Its skills drive to another room: so many seconds, and not a word."""

    def __init__(self, seconds):
        self.seconds = seconds

    def ExecuteSkill(self, request, context):
        yield pb.ExecuteSkillResponse(accepted=pb.Accepted(goal_id=request.goal_id))
        time.sleep(self.seconds)
        yield pb.ExecuteSkillResponse(result=pb.Outcome(status=pb.STATUS_SUCCEEDED))

    def GetRobotInfo(self, request, context):
        return pb.GetRobotInfoResponse(name="theirs")


@contextmanager
def serve_stock(seconds, threads=1):
    """Its address. One thread is the fewest: nothing else is answered while a skill runs."""
    server = grpc.server(ThreadPoolExecutor(threads))
    skills_pb2_grpc.add_RobotServiceServicer_to_server(Drives(seconds), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


if __name__ == "__main__":
    with serve_stock(30) as address:
        print(address, flush=True)
        sys.stdin.read()
