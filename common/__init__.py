"""Everything that both phases agree on: rectangles, manifests, architecture tables, errors, the command line."""
