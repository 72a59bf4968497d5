"""Parts of pages that are one HTML file and need nothing else: no server, no network, no folder beside it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from mode_policy.evaluation.style import CSS


def page(title: str, sections: Iterable[tuple[str, str]], css: str = "") -> str:
    """Return a whole page: a heading, and sections of a title and their HTML.

    Args:
        title: Heading of the page, plain text.
        sections: Title, plain text, and body, HTML, of each.
        css: Rules that follow the common style sheet.
    """
    body = "\n".join(f"<section>\n<h2>{escape(name)}</h2>\n{html}\n</section>" for name, html in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def key_facts(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return key figures: name, value, and a note that may be empty."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in rows
    )
    return f'<dl class="facts">{"\n".join(items)}</dl>'


def plain_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    body = (f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in rows)
    return f'<table class="plain"><tbody>{"\n".join(body)}</tbody></table>'


def sentence(text: str) -> str:
    """Return a paragraph in the soft colour."""
    return f'<p class="soft">{escape(text)}</p>'
