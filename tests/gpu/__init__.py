"""What only a CUDA device shows: pinned staging, and Transformer Engine with its kernels."""
