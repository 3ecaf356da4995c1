"""What was learnt, measured: skills, plans, affordances, values over a scene."""
