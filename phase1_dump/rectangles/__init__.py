"""Turns parameters into rectangles of Hugging Face tensors: geometry alone, without torch or numbers."""
