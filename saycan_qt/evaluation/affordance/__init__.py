"""How well value functions tell what is possible, measured offline."""
