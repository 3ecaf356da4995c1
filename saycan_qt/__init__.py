"""What is learnt, the simulated kitchen, and the commands."""

import os

# Before torch is imported, which reads it then. By default its idle threads spin: on two busy cores a decision of the
# language model took 50 s of wall clock, and 1.5 s with threads that sleep while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before gRPC is. Its own lines about every failed handshake would hide the one in which we say what to do.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
