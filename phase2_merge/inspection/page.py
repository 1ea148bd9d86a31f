"""The page that `inspect --html` writes: one file, nothing loaded from elsewhere.

Decides how an inspection looks as HTML. Must not know any file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import printable

from .coverage import LayerCover
from .report import Inspection

STYLE = """
body { font: 14px sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } th { font-weight: normal; color: #666; padding-right: .6em; text-align: right }
.map td { width: 9px; height: 12px; border: 1px solid #fff; padding: 0 } .map td.rest { width: 24px }
.full { background: #3a9d5d } .part { background: #e6b422 } .none { background: #d64545 }
.double { background: #9b4dca } .bar { background: #5b8def; height: 10px }
.key { display: inline-block; width: 12px; height: 12px; margin: 0 .3em 0 1em } li { margin: .3em 0 }
"""
KEY = (("full", "whole"), ("part", "in part"), ("none", "nothing"), ("double", "twice"))


@dataclass(frozen=True, slots=True)
class WithPage:
    """An inspection that goes into a page too, at the path `html`."""

    inspection: Inspection
    html: Path

    def facts(self) -> dict[str, Any]:
        return self.inspection.facts()

    def text(self) -> str:
        return self.inspection.text()

    def files(self) -> Mapping[Path, bytes]:
        """Return the page, by where it is written."""
        return {self.html: page(self.inspection).encode(errors="backslashreplace")}


def page(inspection: Inspection) -> str:
    """Return the whole page, as HTML."""
    title = f"{inspection.kind} {inspection.path}"
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in inspection.lines()),
        *_problems(inspection.problems),
        *_map(inspection.layers),
        *_sizes(inspection.sizes),
        "</body></html>",
    ]
    return printable.lines("\n".join(parts)) + "\n"


def _problems(problems: Iterable[str]) -> list[str]:
    lines = [f"<li>{escape(text)}</li>" for text in problems]
    return ["<h2>Problems</h2><ul>", *lines, "</ul>"] if lines else []


def _map(layers: Iterable[LayerCover]) -> list[str]:
    rows = [_row(layer) for layer in layers]
    if not rows:
        return []
    key = "".join(f'<span class="key {state}"></span>{word}' for state, word in KEY)
    legend = "<p>Rows are layers. First all other tensors of the layer, then routed experts from 0."
    return ["<h2>Coverage</h2>", f"{legend}{key}</p>", '<table class="map">', *rows, "</table>"]


def _row(cover: LayerCover) -> str:
    cells = [f'<td class="rest {cover.rest}" title="layer {cover.label}: {cover.rest}"></td>']
    cells += [
        f'<td class="{state}" title="layer {cover.label}, expert {expert}: {state}"></td>'
        for expert, state in enumerate(cover.experts)
    ]
    return f"<tr><th>{cover.label}</th>{''.join(cells)}</tr>"


def _sizes(sizes: dict[str, int]) -> list[str]:
    most = max(sizes.values(), default=0) or 1
    rows = [
        f"<tr><th>{escape(name)}</th><th>{show(size)}</th>"
        f'<td><div class="bar" style="width:{400 * size // most}px"></div></td></tr>'
        for name, size in sizes.items()
    ]
    return ["<h2>Sizes</h2><table>", *rows, "</table>"]
