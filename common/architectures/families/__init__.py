"""A module for each family: its tables, and how they read config.json."""
