"""From rectangles to files: which fragment, who writes it, and the directory of a rank."""
