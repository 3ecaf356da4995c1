"""The words on the wire, and what both ends of a connection agree on."""
