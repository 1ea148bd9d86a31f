"""How ranks are told in messages, so that all of them do it alike."""

from __future__ import annotations


def first_ranks(ranks: tuple[int, ...], shown: int = 6) -> str:
    """`0, 1, 2 and 61 more`, for messages."""
    more = len(ranks) - shown
    return ", ".join(map(str, ranks[:shown])) + (f" and {more} more" if more > 0 else "")


def suspects(ranks: tuple[int, ...], where: str) -> str:
    """A sentence on who should have written something; `where` is the place of a single rank. Empty for nobody."""
    if not ranks:
        return ""
    if len(ranks) > 1:
        return f"One of ranks {first_ranks(ranks)} should have written it, as they did its neighbours. "
    return (
        f"Rank {ranks[0]}{f' ({where})' if where else ''} should have written it, as it did its neighbours. "
    )
