"""What readers of a checkpoint find beside its shards. Knows neither dump, nor ledger, nor plan."""
