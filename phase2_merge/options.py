"""What options may be, known without importing what they decide: help and refusals are instant."""

from __future__ import annotations

ALLOWANCES = ("nan", "replicas")
ADOPT, CANONICAL = LAYOUTS = ("adopt", "canonical")
