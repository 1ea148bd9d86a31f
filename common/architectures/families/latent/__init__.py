"""Tables of DeepSeek, and of GLM-5, whose attention is DeepSeek's."""
