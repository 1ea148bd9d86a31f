"""From parameters to rectangles of Hugging Face tensors: geometry alone, without torch; no number is looked at."""
