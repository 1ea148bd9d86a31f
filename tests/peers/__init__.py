"""Beside the newest megatron-core, modelopt and transformers: what `make test-peers` adds."""
