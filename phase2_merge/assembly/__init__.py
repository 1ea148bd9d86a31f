"""Writes shards, in worker processes that import neither the ledger nor Arrow."""
