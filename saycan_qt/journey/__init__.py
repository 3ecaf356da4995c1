"""One run: from a sentence to a folder that says what happened."""
