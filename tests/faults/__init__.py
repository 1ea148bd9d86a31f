"""What can be wrong with a dump, each fault a test of its own."""
