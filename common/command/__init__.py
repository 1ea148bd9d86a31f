"""What the command lines of both phases share: the group of commands, outcomes, progress, sizes."""
