"""Robots that do not exist, what people say to them, and the plans: from which a language model learns to plan for any."""
