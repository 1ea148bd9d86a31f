"""`--set` and `--set-new`: what they accept, what they change, and what is recorded."""
