"""What a Parquet file says of itself, read before Arrow sees it: anybody may have written it."""
