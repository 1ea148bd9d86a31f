"""Is the dump whole and undamaged? A list of checks that all answer in one shape."""
