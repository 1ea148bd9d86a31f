"""What the live model says of its settings: all that changes its results and shows in no shape.

`fields` classes every field of megatron-core's configs, so that none is left out unseen.
"""
