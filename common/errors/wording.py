"""Phrases about ranks that several messages share, so that all of them use the same words."""

from __future__ import annotations


def first_ranks(ranks: tuple[int, ...], shown: int = 6) -> str:
    """Return the first ranks for a message, such as `0, 1, 2 and 61 more`."""
    more = len(ranks) - shown
    return ", ".join(map(str, ranks[:shown])) + (f" and {more} more" if more > 0 else "")


def suspects(ranks: tuple[int, ...], where: str) -> str:
    """Return a sentence on who should have written something, empty for nobody. `where` is the place of one rank."""
    if not ranks:
        return ""
    if len(ranks) > 1:
        return f"One of ranks {first_ranks(ranks)} should have written it, as they did its neighbours. "
    return (
        f"Rank {ranks[0]}{f' ({where})' if where else ''} should have written it, as it did its neighbours. "
    )
