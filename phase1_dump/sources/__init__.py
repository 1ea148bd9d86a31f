"""Where parameters come from: a live model of megatron-core."""
