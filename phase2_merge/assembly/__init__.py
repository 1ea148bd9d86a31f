"""What a worker process imports to write shards: no ledger, no Arrow."""
