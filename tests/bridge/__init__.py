"""Megatron-Bridge beside shardmerge: both export the same models with MTP. Run by `make test-bridge`."""
