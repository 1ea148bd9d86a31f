"""Tables of architectures, a module for each family, and how they read config.json.

To add one: a module here, and a line in `common/architectures/__init__.py`. CONTRIBUTING.md tells the steps.
"""
