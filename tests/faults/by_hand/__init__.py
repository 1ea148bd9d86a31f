"""Faults in dumps that were made by hand."""
