"""What vLLM makes of merged checkpoints, in an environment of its own: `make test-vllm`."""
