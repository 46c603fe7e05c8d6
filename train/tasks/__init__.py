"""One folder a task; none imports another."""
