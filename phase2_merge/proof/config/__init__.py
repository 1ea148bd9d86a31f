"""config.json as a part of the proof: the shapes it gives tensors, what it makes readers compute, what it promises."""
