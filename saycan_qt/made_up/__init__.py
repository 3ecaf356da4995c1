"""Robots that do not exist, what people say to them, and plans: from these a language model learns to plan for any."""
