"""Rows that families share. Keys are canonical megatron-core keys: `ShardedTensor.key` with `non_homogeneous_layers`
and `singleton_local_shards`.
"""
