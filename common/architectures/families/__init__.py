"""Tables of architectures, a module for each family, and how they read config.json."""
