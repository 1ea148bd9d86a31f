"""From a Megatron model to a checkpoint that others load: whole journeys."""
