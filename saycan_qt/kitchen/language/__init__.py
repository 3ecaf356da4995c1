"""All that is said about the kitchen."""
