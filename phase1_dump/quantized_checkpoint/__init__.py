"""Packs the weights of a checkpoint on disk that has quantizers, by the functions that pack those of a live model.

The only part of a dump from disk that needs torch and modelopt. It is imported when a checkpoint has quantizers.
"""
