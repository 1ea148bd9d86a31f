"""Tests of phase one's room of this name."""
