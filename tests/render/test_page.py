"""The report page: offline, escaped, with a text for every figure, and drawn by a real browser."""

from __future__ import annotations

import html
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the page needs the extra [page]")

from test_render import JOULES, unmarked_joules

from compressor.render.page import chain_of, page
from compressor.render.page_figures import (
    Point,
    StageRecord,
    across_runs,
    dominated,
    kept_structure,
    label_places,
    plotly_js,
)
from compressor.schema.certificate import Certificate, CertifiedFigure, CertifiedFile
from compressor.schema.report import Quality, Report, read_report

HERE = Path(__file__).parent
REPORT = read_report(HERE / "smoke_report.json")
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--virtual-time-budget=8000"),
)
CONFIG = {"num_attention_heads": 4, "intermediate_size": 256}
KEPT = {"n_heads": 2, "n_kv_heads": 2, "ffn_width": 128, "skip": []}
HISTORY = (
    {"step": 1.0, "loss": 1.0},
    {"step": 2.0, "loss": 0.5},
    {"step": 2.0, "validation_loss": 0.7, "validation_accuracy": 0.5},
)
RECORDS = {
    "model": StageRecord("model", config=CONFIG),
    "teacher": StageRecord("teacher", history=HISTORY, config=CONFIG),
    "pruned": StageRecord("pruned", structure={"layers_kept": "0", "layers": [KEPT]}, config=CONFIG),
}
PAGE = page(REPORT, records=RECORDS)
N_FIGURES = 8
CERTIFICATE = Certificate(
    certified=False,
    reasons=("recall of 'yes': missed",),
    of=CertifiedFile(candidate="int8", variant="v", file="f", sha256="0" * 64, checkpoint="c"),
    baseline=None,
    figures=(
        CertifiedFigure(
            metric="recall", label="yes", n=9, value=0.5, baseline=0.75, delta=-0.25, delta_low=-0.4, delta_high=-0.1,
            limit="at most 5 points", status="missed",
        ),
    ),
    limits=(),
    data={},
    machine={"cpu": "one processor", "runtime": "onnxruntime 1"},
    created="",
)  # fmt: skip


def without_script(text: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def text_of(source: str) -> str:
    """What a reader sees, with the text alternatives."""
    said = " ".join(re.findall(r'aria-label="([^"]*)"', source))
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", without_script(source)) + " " + said))


def test_every_joule_says_where_it_comes_from() -> None:
    for source in (PAGE, page(REPORT, REPORT)):
        assert len(JOULES.findall(text_of(source))) >= 10
        assert unmarked_joules(text_of(source)) == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    source = PAGE.replace(plotly_js(), "")
    assert len(PAGE) - len(source) == len(plotly_js()), "plotly.js is inside exactly once"
    assert "default-src 'none'" in source
    assert re.findall(r'(?:src|href)="[^"#]', source) == []


def test_the_page_has_every_part() -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", PAGE)
    assert headings == [
        "Goals and verdicts",
        "Step by step",
        "Quality against cost",
        "Cost of use",
        "Energy windows",
        "Quality",
        "Certificates",
        "Training",
        "Kept structure",
        "Cost of compressing, and when it comes back",
        "Every setting and version",
    ]
    seen = text_of(PAGE)
    for text in ("0.109x", "48.7 %", "MET", "2 of 4", "128 of 256", "stages.student.losses.logits.temperature 2.0"):
        assert text in seen


def test_every_figure_has_a_text_and_a_table() -> None:
    figures = re.findall(r"<figure>.*?</figure>", PAGE, flags=re.DOTALL)
    assert len(figures) == N_FIGURES
    for figure in figures:
        said = re.search(r'role="img" aria-label="([^"]{40,})"', figure)
        assert said is not None and f"<p>{said[1]}</p>" in figure
        assert "<table>" in figure and 'scope="col"' in figure and 'scope="row"' in figure


def test_the_winners_certificate_is_told_label_by_label() -> None:
    seen = text_of(page(REPORT.model_copy(update={"certificates": (CERTIFICATE,)})))
    assert "NOT CERTIFIED int8: not certified on one processor, onnxruntime 1: recall of 'yes': missed" in seen
    assert "recall of yes 9 0.5000 0.7500 -0.2500 (-0.4000 to -0.1000) missed" in seen
    assert "This report was written without certificates: nothing in it is certified." in text_of(PAGE)


def test_every_energy_window_says_how_it_was_had() -> None:
    figure = next(
        one for one in re.findall(r"<figure>.*?</figure>", PAGE, flags=re.DOTALL) if "Energy per token" in one
    )
    seen = text_of(figure)
    assert "estimated (model_estimated) spec_share/1 VM share" in seen
    assert unmarked_joules(seen) == []


def test_what_a_report_says_is_never_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    candidates = tuple(one.model_copy(update={"id": evil if one.id == "fp16" else one.id}) for one in REPORT.candidates)
    report = REPORT.model_copy(update={"name": evil, "model": evil, "candidates": candidates})
    assert evil not in page(report)
    assert "<img" not in page(report).replace(plotly_js(), "")


def test_the_chain_leads_from_the_baseline_to_the_winner() -> None:
    ids = ["teacher", "teacher@onnx", "student@onnx", "pruned@onnx", "onnx", "int8"]
    assert [one.id for one in chain_of(REPORT)] == ids


@pytest.mark.parametrize("change", [{"selected": None}, {"pipeline": {}}, {"candidates": (), "selected": None}])
def test_a_report_with_little_in_it_still_has_a_page(change: dict[str, object]) -> None:
    assert "</html>" in page(REPORT.model_copy(update=change))


def point(cost: float, value: float, metric: str = "accuracy") -> Point:
    row = Quality(metric=metric, dataset="d", split="test", value=value, ci95=None, n=1, paired=None)
    return Point(f"{cost}", row, cost, None)


def test_dominated_is_no_better_in_anything_and_worse_in_something() -> None:
    assert dominated([point(1, 0.9), point(2, 0.95), point(3, 0.95), point(2, 0.8)]) == [False, False, True, True]
    assert dominated([point(1, 0.9), point(1, 0.9)]) == [False, False]
    assert dominated([point(1, 20, "token_perplexity"), point(2, 30, "token_perplexity")]) == [False, True]


def test_names_stand_where_they_cover_nothing_and_the_best_get_the_first_place() -> None:
    apart = [point(0.2, 0.9), replace(point(1.0, 0.9), name="one long name (baseline)"), point(1.01, 0.3)]
    places = label_places(apart, dominated(apart))
    assert set(places) == {one.name for one in apart}
    assert places["one long name (baseline)"] == "top left", "on the right it would leave the figure"
    heap = [replace(point(1.0, 0.9), name=f"a long name {number}") for number in range(9)]
    places = label_places([*heap, point(0.9, 0.95)], [True] * 9 + [False])
    assert places["0.9"] == "top right" and len(places) < 10, "what finds no place is left to the table"
    assert len(set(places.values())) == len(places)


def test_language_models_of_two_runs_meet_on_bytes() -> None:
    """A token is what a vocabulary makes it: its perplexity says nothing beside another vocabulary's."""
    token, byte = (
        point(1, value, metric).quality for value, metric in ((400.0, "token_perplexity"), (5.0, "byte_perplexity"))
    )
    assert across_runs((token, byte)) == byte and across_runs((token,)) == token
    candidates = tuple(one.model_copy(update={"quality": (token, byte)}) for one in REPORT.candidates)
    report = REPORT.model_copy(update={"candidates": candidates})
    seen = text_of(page(report, report.model_copy(update={"name": "second"})))
    assert "not dominated on byte_perplexity and cost" in seen and "second int8 byte_perplexity 5" in seen


def test_kept_structure_counts_a_skipped_part_as_nothing() -> None:
    record = StageRecord("p", structure={"layers_kept": "0", "layers": [{**KEPT, "skip": ["attention"]}]})
    drawn = kept_structure(record, CONFIG)
    assert drawn is not None
    assert drawn.table.rows == (("layer 0", "0 of 4", "0 of 4", "128 of 256"),)
    assert kept_structure(record, {"hidden_size": 3}) is None


def test_two_runs_are_compared_by_ratios_to_their_own_baseline() -> None:
    other = REPORT.model_copy(update={"name": "second"})
    seen = text_of(page(REPORT, other))
    assert "smoke and second" in seen
    assert "absolute costs of two sessions are not comparable" in seen
    assert "second: int8 (selected)" in seen


def test_runs_on_other_rows_share_no_figure() -> None:
    other = REPORT.model_copy(update={"name": "second", "data": {"test": {"digest": "another"}}})
    seen = text_of(page(REPORT, other))
    assert "judged on other rows or by other metrics, so no figure shows them together" in seen
    assert "All runs" not in seen


def browse(tmp_path: Path, source: str, *flags: str) -> tuple[str, str]:
    """The page's elements after its scripts have run, and what the browser logged."""
    file = tmp_path / "page.html"
    file.write_text(source, encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium: the page is not drawn here")
def test_chromium_draws_every_figure_without_an_error_and_nothing_hangs_over(tmp_path: Path) -> None:
    probe = (
        "<script>addEventListener('load', () => setTimeout(() => {"
        "document.body.dataset.over = document.documentElement.scrollWidth - innerWidth;"
        "document.body.dataset.wide = innerWidth;"
        "document.body.dataset.dark = matchMedia('(prefers-color-scheme: dark)').matches}, 500))</script></body>"
    )
    source = PAGE.replace("</body>", probe)
    dom, log = browse(tmp_path, source, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert "CONSOLE" not in log
    drawn = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert len(re.findall(r'class="[^"]*js-plotly-plot', drawn)) == N_FIGURES
    assert int(re.search(r'data-over="(-?\d+)"', drawn)[1]) <= 0  # type: ignore[index]
    assert 'data-dark="true"' in drawn


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of `#rrggbb`."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(mode: int) -> None:
    css = re.search(r"<style>(.*?)</style>", PAGE, flags=re.DOTALL)
    assert css is not None
    colours = dict(
        re.findall(r"--(\w+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", css[1], flags=re.DOTALL)[mode])
    )
    assert set(colours) == {"paper", "card", "ink", "soft", "line", "link", "met", "missed", "open"}
    for ground in ("paper", "card"):
        for text in ("ink", "soft", "link", "met", "missed", "open"):
            low, high = sorted((luminance(colours[ground]), luminance(colours[text])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}"


def test_the_keyboard_reaches_what_scrolls_and_unfolds() -> None:
    seen = without_script(PAGE)
    assert all('tabindex="0"' in tag and "aria-label=" in tag for tag in re.findall(r'<div class="scroll"[^>]*>', seen))
    assert seen.count("<details") == seen.count("<summary") >= N_FIGURES
    assert ".scroll:focus-visible, summary:focus-visible" in PAGE and "<html lang=" in PAGE


def test_equal_reports_give_equal_pages() -> None:
    assert page(Report.model_validate_json(REPORT.model_dump_json(by_alias=True)), records=RECORDS) == PAGE


def test_a_pruned_structure_says_what_it_was_to_cost_and_what_it_measured() -> None:
    choice = {
        "budget": {"cpu_s_per_token": "0.6x"}, "predicted_cost_ratio": 0.602, "measured_cost_ratio": 0.611,
        "tolerance": 0.034, "measured": {"aa_bound": 0.034},
    }  # fmt: skip
    record = StageRecord("p", structure={"layers_kept": "0", "layers": [KEPT]}, choice=choice)
    drawn = kept_structure(record, CONFIG)
    assert drawn is not None
    assert "Chosen for the budget cpu_s_per_token 0.6x; predicted 0.602 of the dense cost." in drawn.text
    assert "measured 0.611, 3.4% off being allowed (the dense model differed from itself by up to 3.4%)" in drawn.text
    mixed = replace(record, choice={**choice, "precisions": [{"attention": "fp32", "ffn": "int8"}, {"ffn": "fp32"}]})
    drawn = kept_structure(mixed, CONFIG)
    wide = "these stay in fp32 and the others go to INT8: attention of layer 0, ffn of layer 1."
    assert drawn is not None and f"Of 3 sublayers that remain, {wide}" in drawn.text
    narrow = replace(record, choice={**choice, "precisions": [{"attention": "int8", "ffn": "int8"}]})
    drawn = kept_structure(narrow, CONFIG)
    assert drawn is not None and "All 2 sublayers that remain go to INT8." in drawn.text
