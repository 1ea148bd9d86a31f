"""Tests of phase one, a module each; `dumped` reads what a dump wrote with the safetensors library alone."""
