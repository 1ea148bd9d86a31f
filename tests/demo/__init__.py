"""The main job, end to end, on eight local processes: what `make demo` runs."""
