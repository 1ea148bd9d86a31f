"""Settings: what changes the results of a model and shows in no shape, and which keys of config.json say it.

`vocabulary` names them. A table of an architecture holds a `Says` for each that its config.json can express, the dump
records what the live model says, and the merge compares.
"""
