"""What ranks say of quantization, what the JSON files declare, and whether the tensors are stored so."""
