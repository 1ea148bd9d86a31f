"""Tests: beside the modules they mirror, the worlds they run in, the demo, and what writes the documentation."""
