"""Is the dump whole and undamaged? `prove` runs a list of checks, which all return `Findings`."""
