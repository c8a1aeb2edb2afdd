"""The OpenAPI page: what can be asked, the columns, and a command to copy. One file, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from autometa.predictor import Column

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .6rem;
border-bottom: 1px solid #8886; vertical-align: top; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid #8886; }
code { font-size: .9em; } h2 { margin-top: 2rem; }
"""


def api_page(document: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """An HTML page from an OpenAPI document and the columns of the model."""
    endpoints = "".join(
        f"<tr><td><code>{escape(method.upper())} {escape(path)}</code></td><td>{escape(what.get('summary', ''))}</td>"
        f"<td>{', '.join(map(escape, what.get('responses', {})))}</td></tr>"
        for path, methods in document["paths"].items()
        for method, what in methods.items()
    )
    rows = "".join(
        f"<tr><td>{escape(str(column.name))}</td><td>{escape(column.kind)}</td>"
        f"<td>{escape(', '.join(column.categories[:8]))}{' …' if len(column.categories) > 8 else ''}</td></tr>"
        for column in columns
    )
    example = json.dumps([{str(column.name): _example(column) for column in columns}], ensure_ascii=False)
    command = f"curl -H 'Content-Type: application/json' -d '{example}' http://localhost:8000/predict"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(document['info']['title'])}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(document['info']['title'])}</h1>"
        '<p>The machine-readable form is <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Requests</h2><table><tr><th>Request</th><th>What it does</th><th>Status</th></tr>{endpoints}</table>"
        f"<h2>Columns</h2><table><tr><th>Name</th><th>Kind</th><th>Values seen in fit</th></tr>{rows}</table>"
        f"<h2>Example</h2><pre><code>{escape(command)}</code></pre></main></body></html>"
    )


def _example(column: Column) -> Any:
    if column.categories:
        return column.categories[0]
    return {"numeric": 1.0, "boolean": True, "datetime": "2026-01-31", "text": "some words"}.get(column.kind)
