"""The toy's report: one HTML page with its chart, without network or scripts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from result_files import figures
from toy_reading import NAMES, reading

from secfed.report.drawing import MUTED, SERIES, curve, label_ends, render_svg

__all__ = ["page"]

_LABELS: Final = {
    "fedavg": "FedAvg",
    "reconstruction": "reconstruction",
    "untruncated": "not truncated",
    "aligned": "aligned",
}
_STYLE: Final = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --muted: #59636e;
  --grid: #dde1e6; --s1: #0b5cad; --s2: #b84a00; --s3: #00735c; --s4: #8a3f8c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e7ebf0;
  --muted: #a2adb9; --grid: #333b45; --s1: #7ab8ff; --s2: #ffa45c; --s3: #4fd1ad;
  --s4: #d9a0e0; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 52rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; }
figcaption, .meta { color: var(--muted); font-size: .85rem; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0 1rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--grid);
  text-align: right; white-space: nowrap; }
"""
_CAPTION: Final = (
    "Root mean square error against the rank, one panel per noise. Dotted: the update "
    "zero. Dashed: the exact error of reconstruction that is not truncated, from the "
    "inherent rank on. Each panel has its own scale."
)


def page(found: Mapping[str, Any]) -> str:
    """The report as one HTML document."""
    setup = found["setup"]
    title = "Averaging LoRA factors or their products: the toy experiment"
    chart = render_svg("toy", title, _CAPTION, lambda figure: _draw(figure, found), 10)
    words = "\n".join(f"<p>{escape(text)}</p>" for text in reading(found))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{title}</h1>\n"
        f"<p>{escape(_set_up(setup))}</p>\n<h2>What the numbers say</h2>\n{words}\n"
        f"<figure>{chart}<figcaption>{_CAPTION}</figcaption></figure>\n"
        f"<h2>The numbers</h2>\n{_tables(found)}\n<p class='meta'>{_meta(found)}</p>\n"
        "</body></html>\n"
    )


def _set_up(setup: Mapping[str, Any]) -> str:
    return (
        f"{setup['sites']} sites hold noisy versions of one {setup['size']} by "
        f"{setup['size']} matrix of rank {setup['inherent_rank']}, and send its best "
        "factors of rank r. Errors are Frobenius norms, as root mean square over "
        f"{setup['repetitions']} repetitions (seed {setup['seed']})."
    )


def _draw(figure: Figure, found: Mapping[str, Any]) -> None:
    panels = figure.subplots(len(found["levels"]), 1, sharex=True)
    for axes, level in zip(panels, found["levels"], strict=True):
        _panel(axes, level, found["setup"])
    panels[-1].set_xlabel("rank r")


def _panel(axes: Axes, level: Mapping[str, Any], setup: Mapping[str, Any]) -> None:
    ranks, ends = setup["ranks"], []
    for look, (method, label) in zip(SERIES, _LABELS.items(), strict=False):
        values = [row[0] for row in level["methods"][method]["rms"]]
        curve(axes, dict(zip(ranks, values, strict=True)), look)
        ends.append((values[-1], f"{label} {figures(values[-1])}", ranks[-1]))
    zero, exact = level["exact"]["zero"], level["exact"]["untruncated"]
    axes.axhline(zero, color=MUTED, lw=1.2, ls=(0, (1, 2)))
    ends.append((zero, f"zero {figures(zero)}", ranks[-1]))
    known = [setup["inherent_rank"], ranks[-1]]
    axes.plot(known, [exact, exact], color=MUTED, lw=1.2, ls=(0, (5, 3)))
    ends.append((exact, f"exact {figures(exact)}", ranks[-1]))
    axes.set_title(f"noise {level['noise']:g}", fontsize=9, loc="left")
    axes.set_ylabel("error")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(axes, ends)


def _tables(found: Mapping[str, Any]) -> str:
    return "\n".join(_table(level, found["setup"]) for level in found["levels"])


def _table(level: Mapping[str, Any], setup: Mapping[str, Any]) -> str:
    """One noise: a line per rank, each error with its 95 % interval."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("rank", *NAMES.values()))
    lines = []
    for rank in setup["ranks"]:
        cells = [level["methods"][method]["rms"][rank - 1] for method in NAMES]
        text = "".join(
            f"<td>{figures(mean)} [{figures(low)}, {figures(high)}]</td>"
            for mean, low, high in cells
        )
        lines.append(f"<tr><td>{rank}</td>{text}</tr>")
    return (
        f"<h3>Noise {level['noise']:g}</h3>\n<table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _meta(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    return (
        f"<code>{escape(found['command'])}</code>, {escape(found['date'])}, "
        f"{found['seconds']} s. {escape(versions)}. 95 % intervals (Student's t)."
    )
