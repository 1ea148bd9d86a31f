"""Quantization formats: what a quantized weight becomes on disk, and what the JSON files say of it."""
