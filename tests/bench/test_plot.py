"""Curves over seeds: mean and deviation at common places, as a picture that stands alone."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from fedbpt_api.bench.plot import Curve, curves_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_a_curve_is_the_mean_of_steps_with_a_band_of_one_deviation() -> None:
    runs = [[(100, 0.5), (300, 0.9)], [(100, 0.7), (200, 0.7), (300, 0.7)]]
    text = curves_svg([Curve("ours <&>", runs)], "scored examples", "accuracy")
    root = ElementTree.fromstring(text)
    titles = [t.text for t in root.iter(f"{SVG}title")]
    assert titles[0] == "ours <&>: 0.6 at 100" and titles[-1] == "ours <&>: 0.8 at 300"
    assert "ours <&>: 0.6 at 200" in titles  # a step lasts until the next one
    assert len(list(root.iter(f"{SVG}polygon"))) == 1
    assert "ours <&>" in [t.text for t in root.iter(f"{SVG}text")]


def test_one_seed_has_no_band_and_every_method_a_style_of_its_own() -> None:
    curves = [Curve(f"m{n}", [[(0, 0.1 * n), (10, 0.2 * n)]]) for n in range(10)]
    text = curves_svg(curves, "x", "y")
    assert "<polygon" not in text
    styles = re.findall(r"\.s\d+ path, line\.s\d+ (\{.*?\})", text)
    assert len(set(styles)) == 10
