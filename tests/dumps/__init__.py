"""Makers of dumps and outputs for tests, by hand and by numpy, and how they are refused."""
