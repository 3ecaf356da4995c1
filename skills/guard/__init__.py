"""The guard: a small process beside a robot's service, which holds the right to move it.

memory     what both write and read without waiting for each other
process    the guard itself: heartbeats, the latch, Stop on a socket of its own
link       the service's end: asks before each motion, halts when told
client     Stop by that road
"""
