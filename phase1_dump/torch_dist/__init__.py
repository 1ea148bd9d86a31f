"""Reads what megatron-core calls a torch_dist checkpoint, without torch and without executing a pickle.

Knows files, archives and chunks of Megatron tensors; must not know Hugging Face tensors, nor what is done with numbers.
"""
