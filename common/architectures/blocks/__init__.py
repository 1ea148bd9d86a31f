"""Rows of tables that several families of architectures share: a module for each part of a decoder.

Keys are canonical megatron-core keys: `ShardedTensor.key` with `non_homogeneous_layers` and `singleton_local_shards`.
"""
