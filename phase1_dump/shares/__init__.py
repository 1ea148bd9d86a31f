"""Who writes which share of a checkpoint: any number of processes, on any hosts, each of which takes what nobody has.

Nothing is handed out. A share is a rank of the dump, and attempts at ranks have records of their owners already.
"""
