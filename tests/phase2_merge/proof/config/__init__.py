"""config.json as a part of the proof."""
