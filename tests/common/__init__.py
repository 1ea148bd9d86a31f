"""Tests of what both phases agree on."""
