"""Linux and its file systems, and nothing about checkpoints: a newcomer may skip this room."""
