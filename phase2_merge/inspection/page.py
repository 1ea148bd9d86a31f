"""The page that `inspect --html` writes: one file, nothing loaded from elsewhere.

Decides how an inspection looks as HTML. Must not know any file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import printable
from shardmerge.common.versions import version_of

from . import map_drawing
from .report import Inspection

STYLE = """
body { font: 14px sans-serif; margin: 2em; color: #222; overflow-wrap: anywhere } h1 { font-size: 1.4em }
.verdict { padding: .7em 1em; border-left: 6px solid; font-size: 1.15em; max-width: 64em }
.verdict.good { border-color: #3a9d5d; background: #e9f6ee } .verdict.bad { border-color: #d64545; background: #fbeaea }
.looked { color: #666 } li { margin: .3em 0 } .scrolled { overflow-x: auto }
.sizes { border-collapse: collapse } .sizes th { font-weight: normal; color: #666; text-align: right }
.sizes th { padding-right: .6em; white-space: nowrap }
.sizes td { padding: 1px 0 } .bar { background: #5b8def; height: 10px } .absent { color: #d64545 }
.key { display: inline-block; width: 12px; height: 12px; margin: 0 .3em 0 1em }
.full { background: #3a9d5d; fill: #3a9d5d } .part { background: #e6b422; fill: #e6b422 }
.none { background: #d64545; fill: #d64545 } .double { background: #9b4dca; fill: #9b4dca }
.map text { font-size: 10px; fill: #666 }
"""
KEY = (("full", "whole"), ("part", "in part"), ("none", "nothing"), ("double", "twice"))
WIDTH = 400  # pixels of the longest bar


@dataclass(frozen=True, slots=True)
class WithPage:
    """An inspection that goes into a page too, at the path `html`."""

    inspection: Inspection
    html: Path

    @property
    def exit_code(self) -> int:
        return self.inspection.exit_code

    def facts(self) -> dict[str, Any]:
        return self.inspection.facts()

    def scope(self) -> tuple[list[str], list[str]]:
        return self.inspection.scope()

    def text(self) -> str:
        return self.inspection.text()

    def files(self) -> Mapping[Path, bytes]:
        """Return the page, by where it is written."""
        return {self.html: page(self.inspection, datetime.now(UTC)).encode(errors="backslashreplace")}


def page(inspection: Inspection, looked_at: datetime) -> str:
    """Return the whole page, as HTML. `looked_at` is when the inspection was made."""
    title = f"{inspection.kind.capitalize()} {inspection.path}"
    when = f"Looked at on {looked_at:%Y-%m-%d at %H:%M UTC} by shardmerge {version_of('shardmerge')}."
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        *_verdict(inspection),
        f'<p class="looked">{escape(when)}</p>',
        *_problems([*inspection.ranks.never_began(), *inspection.problems]),
        "<h2>What it is</h2>",
        *(f"<p>{escape(line)}</p>" for line in inspection.lines()),
        *_map(inspection),
        *_sizes(inspection),
        "</body></html>",
    ]
    return printable.lines("\n".join(parts)) + "\n"


def _verdict(inspection: Inspection) -> Iterator[str]:
    good, text = inspection.verdict()
    yield f'<p class="verdict {"good" if good else "bad"}">{escape(text)}</p>'


def _problems(problems: Iterable[str]) -> list[str]:
    lines = [f"<li>{escape(text)}</li>" for text in problems]
    return ["<h2>Problems</h2><ul>", *lines, "</ul>"] if lines else []


def _map(inspection: Inspection) -> list[str]:
    if not inspection.layers:
        return []
    key = "".join(f'<span class="key {state}"></span>{word}' for state, word in KEY)
    legend = "Rows are layers. First all other tensors of the layer, then routed experts by number."
    drawing = map_drawing.svg(inspection.layers)
    lines = "".join(f"<br>{escape(line)}" for line in map_drawing.not_whole(inspection.layers))
    words = [f'<p class="words">Not whole:{lines}</p>'] if lines else []
    return [f"<h2>Coverage</h2><p>{legend}{key}</p>", f'<div class="scrolled">{drawing}</div>', *words]


def _sizes(inspection: Inspection) -> list[str]:
    most = max(inspection.sizes.values(), default=0) or 1
    rows = [
        f"<tr><th>{escape(name)}</th><th>{show(size)}</th>"
        f'<td><div class="bar" style="width:{WIDTH * size // most}px"></div></td></tr>'
        for name, size in inspection.sizes.items()
    ]
    rows += [
        f'<tr class="absent"><td colspan="3">{escape(line)}</td></tr>'
        for line in inspection.ranks.without_size()
    ]
    return ['<h2>Sizes</h2><table class="sizes">', *rows, "</table>"] if rows else []
