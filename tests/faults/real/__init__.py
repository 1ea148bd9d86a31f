"""One fault a test, on dumps of real models: what is refused, with which exit code, naming which tensor and rank."""
