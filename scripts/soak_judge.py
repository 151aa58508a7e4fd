"""What `make soak` measured, and whether it stayed flat: samples, the rule, a table, a CSV and a picture.

The rule: the first part of a run is warm-up (pools fill, caches and allocators find
their size). What follows is cut into thirds; a metric grows when the median of the
last third exceeds that of the first by more than its tolerance. Medians, since
load comes in waves; a leak of one descriptor or row a call would show hundreds.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path

WARM_UP_SHARE = 0.3
MIB = 1024 * 1024


@dataclass(frozen=True)
class Metric:
    """`share` and `absolute`: growth up to the larger one is within tolerance."""

    name: str
    unit: str
    share: float
    absolute: float


METRICS = (
    Metric("server RSS", "MiB", 0.08, 6.0),
    Metric("server descriptors", "", 0.15, 12),
    Metric("server threads", "", 0.1, 4),
    Metric("server children", "", 0.0, 2),
    Metric("keepers", "", 0.0, 1),
    Metric("keepers RSS", "MiB", 0.1, 3.0),
    Metric("keeper descriptors", "", 0.1, 4),
    Metric("box processes", "", 0.3, 12),
    Metric("all processes", "", 0.25, 15),
    Metric("masters", "", 0.3, 6),
    Metric("database and WAL", "MiB", 0.08, 1.0),
    Metric("data folder without homes", "MiB", 0.08, 1.5),
    Metric("homes", "MiB", 0.1, 4.0),
    Metric("client cache files", "", 0.15, 12),
    Metric("control folder files", "", 0.3, 8),
    Metric("mounts", "", 0.0, 0),
    Metric("cgroups", "", 0.0, 6),
)


@dataclass(frozen=True)
class Verdict:
    metric: Metric
    first: float
    last: float
    lowest: float
    highest: float
    per_hour: float

    @property
    def growth(self) -> float:
        return self.last - self.first

    @property
    def allowed(self) -> float:
        return max(self.metric.share * self.first, self.metric.absolute)

    @property
    def flat(self) -> bool:
        return self.growth <= self.allowed


class Samples:
    """Rows of (seconds since the start, value of each metric)."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, dict[str, float]]] = []

    def add(self, at_s: float, values: dict[str, float]) -> None:
        missing = {metric.name for metric in METRICS} - set(values)
        if missing:
            raise ValueError(f"not measured: {sorted(missing)}")
        self.rows.append((at_s, values))

    def judge(self) -> list[Verdict]:
        """Raises ValueError when there is too little to judge: a soak that proves nothing must not pass."""
        end_s = self.rows[-1][0] if self.rows else 0.0
        kept = [row for row in self.rows if row[0] >= WARM_UP_SHARE * end_s]
        third = len(kept) // 3
        if third < 3:
            raise ValueError("fewer than nine samples after the warm-up: run it longer")
        return [self._judge(metric, kept, third) for metric in METRICS]

    def _judge(self, metric: Metric, kept: list[tuple[float, dict[str, float]]], third: int) -> Verdict:
        values = [row[1][metric.name] for row in kept]
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        hours = (statistics.median(r[0] for r in kept[-third:]) - statistics.median(r[0] for r in kept[:third])) / 3600
        return Verdict(metric, first, last, min(values), max(values), (last - first) / hours if hours else 0.0)

    def write_csv(self, path: Path) -> None:
        names = [metric.name for metric in METRICS]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seconds", *names])
            for at_s, values in self.rows:
                writer.writerow([f"{at_s:.1f}", *(f"{values[name]:.3f}" for name in names)])

    def write_svg(self, path: Path) -> None:
        """One small chart a metric, from zero; the warm-up is shaded."""
        width, height, columns = 300, 110, 3
        end_s = max(self.rows[-1][0], 1.0)
        parts = []
        for number, verdict in enumerate(self.judge()):
            x, y = (number % columns) * (width + 20) + 10, (number // columns) * (height + 50) + 30
            name, top = verdict.metric.name, max(row[1][verdict.metric.name] for row in self.rows) or 1.0
            points = " ".join(
                f"{x + width * at_s / end_s:.1f},{y + height * (1 - values[name] / top):.1f}"
                for at_s, values in self.rows
            )
            colour = "#27724a" if verdict.flat else "#b3261e"
            label = f"{name}: up to {top:.1f} {verdict.metric.unit}".rstrip()
            parts.append(f'<text x="{x}" y="{y - 6}" font-size="12">{escape(label)}</text>')
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="#f4f4f1"/>')
            warm = width * WARM_UP_SHARE
            parts.append(f'<rect x="{x}" y="{y}" width="{warm:.0f}" height="{height}" fill="#e4e4de"/>')
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        rows = -(-len(METRICS) // columns)
        size = f'width="{columns * (width + 20)}" height="{rows * (height + 50) + 20}"'
        body = "\n".join(parts)
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
        )


def render_table(verdicts: list[Verdict]) -> str:
    lines = [
        "| metric | first third | last third | growth | tolerance | per hour | range | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for v in verdicts:
        unit = f" {v.metric.unit}" if v.metric.unit else ""
        lines.append(
            f"| {v.metric.name} | {v.first:.1f}{unit} | {v.last:.1f}{unit} | {v.growth:+.1f} | {v.allowed:.1f} | "
            f"{v.per_hour:+.1f} | {v.lowest:.1f} to {v.highest:.1f} | {'flat' if v.flat else '**grows**'} |"
        )
    return "\n".join(lines)
