"""How weights are packed: modelopt's quantizers and Transformer Engine's parameters, and what is computed of them."""
