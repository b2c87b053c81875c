"""Bar charts as SVG, on the page's own background, readable on a light and on a dark one."""

from xml.sax.saxutils import escape

WIDTH, LABEL, FIGURE, BAR, GAP = 800, 300, 90, 18, 6
STYLE = """
  text { font: 13px sans-serif; fill: #24292f; }
  .title { font-weight: bold; }
  .figure { text-anchor: start; }
  .label { text-anchor: end; }
  .ours { fill: #2f6fdd; } .other { fill: #9aa4b2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .ours { fill: #6ea8fe; } .other { fill: #6b7684; }
  }
"""


def draw(charts):
    """Return an SVG document with one chart below the other; the router's bars stand out."""
    parts, y = [], 0
    for chart in charts:
        y += 28
        parts.append(f'<text class="title" x="8" y="{y}">{escape(chart.title)}</text>')
        y += 10
        longest = max(chart.bars.values(), default=0) or 1
        for label, figure in chart.bars.items():
            parts += _bar(label, figure, figure / longest, y, chart.digits)
            y += BAR + GAP
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" '
            f'width="{WIDTH}" height="{y + 10}" role="img">\n<style>{STYLE}</style>\n'
            + "\n".join(parts) + "\n</svg>\n")


def _bar(label, figure, part, y, digits):
    length = max(1.0, part * (WIDTH - LABEL - FIGURE))
    kind = "ours" if label.startswith("router") else "other"
    middle = y + BAR - 5
    return [f'<text class="label" x="{LABEL - 8}" y="{middle}">{escape(label)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" '
            'rx="2"/>',
            f'<text class="figure" x="{LABEL + length + 6:.1f}" y="{middle}">'
            f'{figure:,.{digits}f}</text>']
