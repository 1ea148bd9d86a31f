"""What readers of a checkpoint find beside its shards. Must not know dump, ledger or plan."""
