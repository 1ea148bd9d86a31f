"""Tests of phase two's room of this name."""
