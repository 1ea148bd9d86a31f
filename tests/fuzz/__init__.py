"""Input that nobody should write: whatever it is, an error of the tree says so, at once and in little memory."""
