"""Tests of a dump that another process writes: its values, its ends, its memory, and who outlives whom."""
