"""Packs weights: reads modelopt's quantizers and Transformer Engine's parameters, computes their tensors."""
