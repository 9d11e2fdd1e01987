"""The report in headless Chromium: it loads, shows, moves and asks for nothing."""

from __future__ import annotations

import urllib.parse
from itertools import pairwise

import browser
import numpy as np
import pytest

from mdtrajnet_fast.cli import main

pytestmark = pytest.mark.skipif(
    not browser.CHROMIUM, reason="no Chromium: apt-get install chromium, or the like"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ethanol"
    settings = "--dt 2 --duration 300 --equilibration 0 --quiet --output"
    assert main(["simulate", "ethanol", *settings.split(), str(folder)]) == 0
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def page(address):
    with browser.Page(700, 600) as page:
        page.open(address)
        yield page


def test_it_loads_without_errors_and_asks_for_nothing(page, address):
    page.until("document.querySelectorAll('.plot svg path.curve').length > 3")
    assert page.errors == []
    assert page.requests == [address]


def test_the_viewer_shows_the_molecule_and_frames_advance(page):
    page.until("document.getElementById('frame').value > 2")  # it plays by itself
    page["document.getElementById('play').click()"]
    assert page["document.getElementById('play').textContent"] == "Play"
    before = page["document.getElementById('frame').value"]
    assert page["document.getElementById('time').textContent"].startswith("0.")
    page["document.getElementById('viewer').scrollIntoView()"]
    first = page.pixels("#viewer")
    shown = abs(first - first[2, 2]).max(axis=2) > 0.1  # differs from the background
    assert 0.01 < shown.mean() < 0.7
    red = (first[..., 0] > 0.4) & (first[..., 1:].max(axis=2) < 0.2)
    assert red.sum() > 30  # the oxygen
    assert page["document.getElementById('frame').value"] == before  # it stands still
    np.testing.assert_array_equal(page.pixels("#viewer"), first)
    slider = "document.getElementById('frame')"
    page[f"{slider}.value = 140; {slider}.dispatchEvent(new Event('input'))"]
    assert page["document.getElementById('time').textContent"] == "0.280 ps, frame 141 of 151."
    assert (abs(page.pixels("#viewer") - first) > 0.1).mean() > 1e-3


def test_by_keyboard(page):
    page["document.getElementById('viewer').focus()"]
    first = page.pixels("#viewer")
    page.press("ArrowLeft")
    turned = page.pixels("#viewer")
    assert (abs(turned - first) > 0.1).mean() > 1e-3
    page["document.querySelector('figure svg').focus()"]
    readout = "document.querySelector('figure .readout output').textContent"
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page[readout].startswith("wavenumber (cm⁻¹) ")
    peak = "document.querySelector('.peaks button')"
    page[f"{peak}.focus()"]
    assert page[f"{readout}"].endswith("· peak") and page[f"{peak}.textContent"] in page[readout]


def test_numbers_beside_the_charts(page):
    for k in range(page["charts.length"]):
        link = page[f"document.querySelectorAll('a.csv')[{k}].href"]
        kind, text = link.split(",", 1)
        assert kind == "data:text/csv;charset=utf-8"
        heading, *rows = urllib.parse.unquote(text).splitlines()
        columns = page[f"report.charts[{k}].columns.length"]
        assert heading.count('"') == 2 * columns
        assert len(rows) == page[f"report.charts[{k}].columns[0].values.length"]
        np.testing.assert_allclose(
            [float(x) for x in rows[-1].split(",")],
            page[f"report.charts[{k}].columns.map((c) => c.values.at(-1))"],
        )


def test_labels_of_peaks_do_not_overlap(page):
    of_one = "[...f.querySelectorAll('text.peak')].map((t) => t.getBoundingClientRect())"
    ends = f"{of_one}.map((b) => [b.left, b.right])"
    boxes = page[f"[...document.querySelectorAll('figure')].map((f) => {ends})"]
    assert sum(map(len, boxes)) > 3
    for each in boxes:
        for (_, right), (left, _) in pairwise(sorted(each)):
            assert left >= right - 1


def test_on_a_phone_and_in_the_dark(page):
    page(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=700,
        deviceScaleFactor=1,
        mobile=True,
    )
    page.until("innerWidth === 390")
    assert page["document.documentElement.scrollWidth"] == 390
    page.until("document.querySelector('.plot svg').viewBox.baseVal.width < 390")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page[background]
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page("Emulation.setEmulatedMedia", features=[dark])
    page.until(f"{background} !== '{light}'")
    page["document.getElementById('viewer').scrollIntoView()"]
    page.until("document.readyState === 'complete'")
    assert page.pixels("#viewer")[3, 3].max() < 0.2
    assert page.errors == []
