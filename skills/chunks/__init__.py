"""Chunks of actions: which row is due when, and a robot that acts on one while the next is computed."""
