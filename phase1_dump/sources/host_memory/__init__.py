"""Host memory that blocks of a GPU pass through: pinned, in two buffers for each stream, given back at the end."""
