"""Who may call what, and how a connection is kept from strangers."""
