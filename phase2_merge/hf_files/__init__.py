"""What readers of a checkpoint find beside its shards."""
