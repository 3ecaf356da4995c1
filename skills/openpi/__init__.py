"""openpi's websocket protocol, both ends: robots that ask a skill server, and an Actor that asks somebody's policy."""
