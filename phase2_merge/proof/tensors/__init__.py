"""Is every expected tensor there, whole, once? And who owes what is missing?"""
