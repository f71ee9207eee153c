"""The report of a real short run, interrupted and resumed, opened in a headless Chromium."""

import re
from pathlib import Path

import pytest
from browser import chromium, requested, show
from command_line_cases import TOOLS, TRAIN, Case, make_inputs, one_run, tiny
from ran_cases import ran
from report_inputs import answer, write_jsonl

from megatron_llava.observe.run_log import read_log

pytestmark = pytest.mark.usefixtures("cpu_platform")

CHARTS = (
    "return [...document.querySelectorAll('figure.chart')].map(figure => ({"
    " title: figure.querySelector('h3').textContent,"
    " names: [...figure.querySelectorAll('path')].map(path => path.dataset.name),"
    " lines: [...figure.querySelectorAll('path')].map(path => path.getAttribute('d')),"
    " boxes: [...figure.querySelectorAll('g')].map(curve => Object.values("
    "  (({x, y, width, height}) => ({x, y, width, height}))(curve.getBBox()))),"
    " dots: figure.querySelectorAll('circle').length,"
    " width: figure.querySelector('svg').getBoundingClientRect().width }))"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, its store, its log and its report."""
    folder = tmp_path_factory.mktemp("run")
    make_inputs(folder)
    store = folder / "store"
    training = tiny(
        folder,
        "--vocab-size=300",
        *("--train-iters=6", "--log-interval=1", "--exit-interval=4", "--save-interval=2"),
        *(f"--valid-data-path={store}", "--eval-interval=2", "--eval-iters=1"),
        *(f"--load={folder / 'run'}", f"--save={folder / 'run'}"),
        f"--log-file={folder / 'log.jsonl'}",
    )
    rows = [answer(n, "cats", "two cats", "two cats", image=f"{n}.png") for n in range(4)]
    answers = str(write_jsonl(folder / "answers.jsonl", rows))
    report = [
        *("--load", str(folder / "run"), "--data-path", str(store), "--samples", "3"),
        *("--tokenizer-model", str(folder / "hf")),
        *("--answers", answers, "--blank-answers", answers, "--image-folder", str(folder)),
        *("--output", str(folder / "report.html")),
    ]
    programs = [
        # Before preprocessing imports Megatron-core in the process of all of them.
        Case("code", ["from megatron_llava.platform import cpu; cpu.install()"]),
        one_run(folder)["preprocess"],
        *[Case(TRAIN, training)] * 2,
        Case(TOOLS["report"], report),
    ]
    for result in ran(programs):
        assert result["status"] == 0, result["err"]
    return folder


def test_the_log_tells_where_the_run_computed_and_that_it_resumed(run):
    log = read_log(run / "log.jsonl")
    assert [start.iteration for start in log.starts] == [0, 4]
    assert log.starts[0].settings == log.starts[1].settings
    assert log.starts[0].environment["device"] == "CPU"
    assert [*log.steps] == [1, 2, 3, 4, 5, 6] and not log.replaced
    assert [*log.columns["valid loss"]] == [2, 4, 6]


def test_a_browser_shows_all_of_it(run, tmp_path):
    columns = read_log(run / "log.jsonl").columns
    page = (run / "report.html").as_uri()
    with chromium(tmp_path / "profile") as browser:
        show(browser, 1200, "light")
        browser.get(page)
        charts = browser.execute_script(CHARTS)
        assert {name for chart in charts for name in chart["names"]} == {*columns}
        assert charts[0]["names"] == ["lm loss", "valid loss"] and charts[0]["dots"] == 9
        for chart in charts:
            assert chart["width"] > 300, chart
            assert all(
                re.fullmatch(r"(M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)*)+", d) for d in chart["lines"]
            )
            for x, y, width, height in chart["boxes"]:
                assert x >= 70 and x + width <= 450 and y >= 8 and y + height <= 210, chart
        loaded = "return [...document.images].map(image => image.naturalWidth)"
        widths = browser.execute_script(loaded)
        assert len(widths) > 4 + 3 and all(width > 0 for width in widths)
        check_tip(browser)
        back = "return getComputedStyle(document.body).backgroundColor"
        across = "return document.documentElement.scrollWidth"
        light = browser.execute_script(back)
        show(browser, 390, "dark")
        assert browser.execute_script(back) != light == "rgb(255, 255, 255)"
        assert browser.execute_script(across) <= 390
        assert browser.get_log("browser") == []
        assert requested(browser) == {page}


def check_tip(browser):
    """Under the pointer stand the values of the nearest step."""
    move = (
        "const plot = document.querySelector('.plot'), svg = plot.querySelector('svg');"
        "const box = svg.getBoundingClientRect(), across = box.left + box.width * 446 / 460;"
        "svg.dispatchEvent(new PointerEvent('pointermove', {clientX: across, clientY: 0}));"
        "const tip = plot.querySelector('.tip'); return [tip.hidden, tip.textContent]"
    )
    hidden, text = browser.execute_script(move)
    assert not hidden and re.fullmatch(r"step 6\nlm loss: [\d.]+\nvalid loss: [\d.]+", text)


def test_a_browser_would_say_what_is_wrong(tmp_path):
    """What the test above rests on: the errors and requests of a page that has some are seen."""
    page = tmp_path / "page.html"
    page.write_text("<img src='http://127.0.0.1:9/a.png'><script>absent()</script>")
    with chromium(tmp_path / "profile") as browser:
        browser.get(page.as_uri())
        said = " ".join(entry["message"] for entry in browser.get_log("browser"))
        assert "absent is not defined" in said
        assert "http://127.0.0.1:9/a.png" in requested(browser)
