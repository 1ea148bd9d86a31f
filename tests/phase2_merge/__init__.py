"""Tests of phase two, on dumps that a small generator writes."""
