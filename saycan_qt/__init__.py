"""What is learnt, the simulated kitchen, and the commands."""

import os

# Before torch is imported, which reads it then. By default its idle threads spin: on two busy cores a decision of the
# language model took 50 s of wall clock, and 1.5 s with threads that sleep while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before gRPC is. Its own lines, of every failed handshake and compressed call, would hide the one in which we say what
# to do, and let strangers fill a disk.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
