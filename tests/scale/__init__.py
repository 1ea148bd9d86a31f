"""Dumps of the real shapes of large models on ten thousand ranks, without tensor bytes, and what they cost to check."""
