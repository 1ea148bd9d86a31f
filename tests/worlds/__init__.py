"""Real megatron-core models, checkpoints and process worlds on a CPU, for the tests of shardmerge."""
