"""The command line as both phases have it: the group, outcomes, progress, sizes."""
