"""Line charts as SVG, on the page's own background, readable on a light and on a dark one."""

from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 300, 60, 190, 40, 40
GRID = 4
STYLE = """
  text { font: 13px sans-serif; fill: #24292f; }
  .title { font-weight: bold; } .y { text-anchor: end; } .x { text-anchor: middle; }
  line { stroke: #9aa4b2; stroke-opacity: 0.4; }
  polyline { fill: none; stroke: #9aa4b2; stroke-width: 2; }
  .line0 { stroke: #2f6fdd; stroke-width: 3; } .line1 { stroke: #d1642b; }
  .line2 { stroke-dasharray: 8 4; } .line3 { stroke-dasharray: 2 3; }
  .line4 { stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .line0 { stroke: #6ea8fe; } .line1 { stroke: #f0965f; }
  }
"""


def draw(title, ticks, lines):
    """Return an SVG document.

    ticks  labels of the places along the x axis, evenly spaced
    lines  name -> shares of 1, one at each place; the first stands out
    """
    parts = [f'<text class="title" x="8" y="20">{escape(title)}</text>']
    for step in range(GRID + 1):
        y = _y(step / GRID)
        parts += [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
                  f'<text class="y" x="{LEFT - 8}" y="{y + 4:.1f}">{100 * step // GRID} %</text>']
    parts += [f'<text class="x" x="{_x(place, ticks):.1f}" y="{HEIGHT - BOTTOM + 20}">'
              f'{escape(tick)}</text>' for place, tick in enumerate(ticks)]
    below = TOP
    for number, name in sorted(enumerate(lines), key=lambda each: -lines[each[1]][-1]):
        values = lines[name]
        points = " ".join(f"{_x(place, ticks):.1f},{_y(value):.1f}"
                          for place, value in enumerate(values))
        # Names keep apart where lines end at one height.
        below = max(below, _y(values[-1]))
        parts += [f'<polyline class="line{number}" points="{points}"/>',
                  f'<text x="{WIDTH - RIGHT + 8}" y="{below + 4:.1f}">{escape(name)}</text>']
        below += 16
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" role="img">\n<style>{STYLE}</style>\n'
            + "\n".join(parts) + "\n</svg>\n")


def _x(place, ticks):
    return LEFT + place / (len(ticks) - 1) * (WIDTH - LEFT - RIGHT)


def _y(part):
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
