"""What all ranks wrote, as one table. Nothing here judges."""
