"""Writes those pages of the documentation that are made of the code, and runs every command that a page prints."""
