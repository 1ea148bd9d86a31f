"""OUT on the disk: its names, its locks, and how it appears and changes."""
