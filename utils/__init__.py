"""The plumbing of the course; the ideas stand in the notebooks. `run` and `records` are the ground floor."""
