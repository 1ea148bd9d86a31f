"""A module for each command of phase two: the story of what it does, step by step, and its report."""
