"""What a process must know of others that write here, and of its own interpreter."""
