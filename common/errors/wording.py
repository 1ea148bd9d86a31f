"""Phrases about ranks and counts that several messages share, so that all of them use the same words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 shard` or `2,000 shards`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def be(number: int) -> str:
    """Return `was` for one of a thing, else `were`."""
    return "was" if number == 1 else "were"


def of_ranks(ranks: tuple[int, ...]) -> str:
    """Return ` (rank 3)` or ` (ranks 0, 1 and 6 more)` to stand behind a name, empty for a tensor of no rank."""
    return f" (rank{'' if len(ranks) == 1 else 's'} {first_ranks(ranks)})" if ranks else ""


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
