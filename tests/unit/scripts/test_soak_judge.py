"""The rule by which a soak is judged: waves pass, a slow leak does not, and too little proves nothing."""

from __future__ import annotations

import csv
import math
import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from soak_judge import METRICS, WARM_UP_SHARE, Samples, Verdict, render_table

FLAT = {metric.name: 50.0 for metric in METRICS}


def judge(name: str, value_at: Callable[[float], float], *, seconds: int = 1800) -> Verdict:
    samples = Samples()
    for at_s in range(0, seconds, 3):
        samples.add(at_s, {**FLAT, name: value_at(at_s)})
    return next(verdict for verdict in samples.judge() if verdict.metric.name == name)


def test_what_does_not_move_is_flat() -> None:
    assert all(judge(metric.name, lambda _: 50.0).flat for metric in METRICS)


def test_noise_and_waves_are_flat() -> None:
    rng = random.Random(1)
    assert judge("server descriptors", lambda at_s: 60 + 25 * math.sin(at_s / 40) + rng.uniform(-10, 10)).flat


def test_growth_during_the_warm_up_counts_nothing() -> None:
    assert judge("server RSS", lambda at_s: 60 + 60 * min(1.0, at_s / (WARM_UP_SHARE * 1800))).flat


@pytest.mark.parametrize(
    ("name", "per_hour"),
    [("server RSS", 60.0), ("server descriptors", 120.0), ("keeper descriptors", 40.0), ("database and WAL", 20.0)],
)
def test_a_slow_leak_is_found_in_half_an_hour(name: str, per_hour: float) -> None:
    verdict = judge(name, lambda at_s: 50 + per_hour * at_s / 3600)
    assert not verdict.flat
    assert verdict.per_hour == pytest.approx(per_hour, rel=0.05)


def test_one_descriptor_a_call_is_found_in_three_minutes() -> None:
    assert not judge("server descriptors", lambda at_s: 40 + 4 * at_s, seconds=180).flat


def test_shrinking_is_no_fault() -> None:
    assert judge("server RSS", lambda at_s: 300 - at_s / 10).flat


def test_too_few_samples_are_not_judged() -> None:
    samples = Samples()
    with pytest.raises(ValueError, match="run it longer"):
        samples.judge()
    for at_s in range(5):
        samples.add(at_s, FLAT)
    with pytest.raises(ValueError, match="run it longer"):
        samples.judge()


def test_a_sample_without_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="server RSS"):
        Samples().add(0, {name: value for name, value in FLAT.items() if name != "server RSS"})


def test_the_table_the_csv_and_the_picture_hold_every_metric(tmp_path: Path) -> None:
    samples = Samples()
    for at_s in range(100):
        samples.add(at_s, {**FLAT, "masters": float(at_s)})
    table = render_table(samples.judge())
    assert [line for line in table.splitlines() if "**grows**" in line and line.startswith("| masters |")]
    samples.write_csv(tmp_path / "samples.csv")
    rows = list(csv.DictReader((tmp_path / "samples.csv").open()))
    assert len(rows) == 100
    assert set(rows[0]) == {"seconds", *FLAT}
    assert rows[99]["masters"] == "99.000"
    samples.write_svg(tmp_path / "soak.svg")
    lines = ElementTree.parse(tmp_path / "soak.svg").getroot().iter("{http://www.w3.org/2000/svg}polyline")
    colours = [line.get("stroke") for line in lines]
    assert len(colours) == len(METRICS)
    assert colours.count("#b3261e") == 1
