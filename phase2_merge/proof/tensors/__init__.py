"""Is every expected tensor there, whole, once? And which ranks should have written what is missing?"""
