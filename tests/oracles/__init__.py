"""What other programs export of the same models: recorded by `make test-oracles`, compared by `make test`."""
