"""From parameters to rectangles of Hugging Face tensors: geometry alone."""
