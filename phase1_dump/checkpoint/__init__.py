"""Turns a torch_dist checkpoint into sources: shares of about 5 GB, each a rank of the dump, whoever writes it.

The tensors of a checkpoint are put together from chunks while they are read, so a share holds whole tensors, and the
merge adopts them. Imports no torch.
"""
