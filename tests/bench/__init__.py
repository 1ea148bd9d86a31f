"""Speeds and memory as ratios to a named peer, measured in one run: what `make bench` prints."""
