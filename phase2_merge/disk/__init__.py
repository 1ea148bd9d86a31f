"""Linux and its file systems, and nothing of ours: a newcomer may skip this room."""
