"""What `inspect` shows: a map of layers and experts, as text and as a page. Nothing here reads a file."""
