"""What both phases agree on: rectangles, manifests, fragments' headers, architecture tables, errors, the command."""
