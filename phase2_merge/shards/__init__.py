"""Which shards there will be, from what, and who writes them: the parent process's side of a merge."""
