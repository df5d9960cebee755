"""The timeline as SVG: upright positions in pixels, the width in per cent, so that it reads on a phone as on a desk."""

import html
from collections.abc import Iterable

from longshot_dagster.core.timeline import Bar, Timeline, Track

_TRACK_HEADING = 18
_TRACK_GAP = 10
_LANE = 14.0
_LANES_HEIGHT = 336.0  # what all lanes of a track share when there are many
_THINNEST = 3.0
_AXIS = 22
_LABEL_FROM = 0.07  # of the width: a bar as wide as its label

# Of a picture that stands alone; the page brings colours of its own, for light and dark.
_STYLE = """
svg{background:#fff;font:11px system-ui,sans-serif}
text{fill:#57606a} .label{fill:#fff} .grid{stroke:#d0d7de} .cut{stroke:#8c959f;stroke-dasharray:2 3}
.good{fill:#2da44e;stroke:#2da44e} .quiet{fill:#8c959f;stroke:#8c959f} .open{fill:#54aeff;stroke:#54aeff}
.warn{fill:#bf8700;stroke:#bf8700} .bad{fill:#cf222e;stroke:#cf222e} rect{stroke:none!important}
"""


def timeline_svg(timeline: Timeline, *, alone: bool = False) -> str:
    """An `<svg>` element. `alone`: a picture for an `<img>`, 960 pixels wide, with its own colours."""
    top, body = 0.0, []
    for track in timeline.tracks:
        drawn, height = _track(track, top)
        body += drawn
        top += height + _TRACK_GAP
    width = "960" if alone else "100%"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" width="{width}" height="{top + _AXIS:.0f}" '
        f'role="img" aria-label="When planners, workers, landings and sweeps were at it">'
    )
    style = f"<style>{_STYLE}</style>" if alone else ""
    return "".join([head, style, *_axis(timeline, top), *body, "</svg>"])


def _axis(timeline: Timeline, top: float) -> Iterable[str]:
    for tick in timeline.ticks:
        x = f"{tick.at:.2%}"
        anchor = "end" if tick.at > 0.93 else "start" if tick.at < 0.03 else "middle"
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="{_TRACK_HEADING}" y2="{top:.0f}"/>'
        yield f'<text x="{x}" y="{top + 14:.0f}" text-anchor="{anchor}">{html.escape(tick.text)}</text>'
    for cut in timeline.cuts:
        x = f"{cut.at:.2%}"
        yield f'<line class="cut" x1="{x}" x2="{x}" y1="0" y2="{top:.0f}"><title>{html.escape(cut.text)}</title></line>'


def _track(track: Track, top: float) -> tuple[list[str], float]:
    """(elements, height)."""
    count = len(track.lanes)
    step = max(_THINNEST, min(_LANE + 2, _LANES_HEIGHT / count))
    thick = step - (2 if step >= 8 else 1 if step >= 5 else 0.5)
    many = f" ({count} at once)" if count > 1 else ""
    drawn = [f'<text x="0" y="{top + 12:.0f}">{html.escape(track.name)}{many}</text>']
    for number, lane in enumerate(track.lanes):
        y = top + _TRACK_HEADING + number * step
        drawn += [_stroke(bar, y, thick) if track.moments else _bar(bar, y, thick) for bar in lane]
    return drawn, _TRACK_HEADING + count * step


def _bar(bar: Bar, y: float, thick: float) -> str:
    title = f"<title>{html.escape(bar.title)}</title>"
    # Never thinner than a pixel and a half: what took a second of a day happened too.
    box = f'y="{y:.1f}" height="{thick:.1f}"'
    if bar.right - bar.left < _LABEL_FROM or thick < 11:
        width = max(bar.right - bar.left, 0.0016)
        return f'<rect class="{bar.tone}" x="{bar.left:.2%}" width="{width:.2%}" {box}>{title}</rect>'
    return (
        f'<svg x="{bar.left:.2%}" width="{bar.right - bar.left:.2%}" {box}>{title}'
        f'<rect class="{bar.tone}" width="100%" height="100%"/>'
        f'<text class="label" x="4" y="{thick - 3:.1f}">{html.escape(bar.label)}</text></svg>'
    )


def _stroke(bar: Bar, y: float, thick: float) -> str:
    x = f"{bar.left:.2%}"
    ends = f'y1="{y:.1f}" y2="{y + thick:.1f}"'
    return f'<line class="{bar.tone}" x1="{x}" x2="{x}" {ends}><title>{html.escape(bar.title)}</title></line>'
