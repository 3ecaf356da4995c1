"""One page that shows a robot think: live beside a run, of any run's folder, and as a file of its own."""
