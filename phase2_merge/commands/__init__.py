"""A module for each command: its story and its report."""
