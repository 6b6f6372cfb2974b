"""One self-contained HTML page out of texts, tables and figures: no network, light and dark."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from kd_gym.analysis.figures import as_svg, drawn, save_png
from kd_gym.files import write_text

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --line: #d0d7de; --ground: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --faint: #9198a1; --line: #3d444d; --ground: #0d1117; }
}
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; } p.lead { font-size: 1.1rem; } p.note { color: var(--faint); font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } nav a { margin-right: 1rem; } a { color: inherit; }
"""


@dataclass(frozen=True)
class Table:
    """Rows of texts under heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """As HTML."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        head, body = line(self.heads, "th"), "".join(line(row, "td") for row in self.rows)
        return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Picture:
    """A figure, drawn once for each theme; its name is that of its PNG file, its text what a screen reader says."""

    name: str
    text: str
    draw: Callable[[], Figure]

    def html(self) -> str:
        """As HTML."""
        light, dark = (as_svg(drawn(self.draw, theme)) for theme in ("light", "dark"))
        return (
            f'<figure><picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
            f'<img src="{light}" alt="{html.escape(self.text)}"></picture></figure>'
        )


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph that says how to read what follows, and that."""

    title: str
    text: str
    parts: Sequence[Table | Picture] = field(default_factory=list)


def write_page(folder: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write `report.html` with everything inside it, and each figure as a PNG file beside it; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    links = "".join(f'<a href="#s{i}">{html.escape(s.title)}</a> ' for i, s in enumerate(sections))
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>', f"<nav>{links}</nav>"]
    for i, section in enumerate(sections):
        body.append(f'<section id="s{i}"><h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>')
        body += [part.html() for part in section.parts]
        body.append("</section>")
        for part in section.parts:
            if isinstance(part, Picture):
                save_png(drawn(part.draw, "light"), folder / f"{part.name}.png")
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
    )
    write_text(folder / "report.html", f"{head}<body>{''.join(body)}</body></html>\n")
    return folder / "report.html"
