"""Tables of composites: a language model beside a vision tower, made from the language model's own table."""
