"""The figures of a report page: each a Plotly figure with the same content as a sentence and a table.

Colours are told apart by lightness and shape too, and stand on light and dark paper alike; text and grid take the
page's own colours from its style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from compressor.errors import MissingPackageError
from compressor.render import words
from compressor.render.tables import TextTable, name_of
from compressor.schema.report import Candidate, Interval, Measurement, Phase, Quality, Report
from compressor.spec.tasks import LESS_IS_BETTER

try:
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs
    from plotly.subplots import make_subplots
except ImportError:
    raise MissingPackageError("plotly", extra="page", needed_for="the report page") from None

BLUE, ORANGE, GREEN, GREY, PURPLE = "#3f7fd6", "#d9762b", "#2f9e6e", "#8c8c8c", "#9a6bd0"
SHARES = ("accuracy", "macro_f1", "top1_agreement")
Box = tuple[float, float, float, float]
"""Left, right, low, high, as fractions of the axes."""
PHONE, DESK = 0.022, 0.012
"""Width of a letter on a narrow and on a usual screen, as a fraction of the axis."""


@dataclass(frozen=True)
class StageRecord:
    """What a stage's manifest adds to the report.

    Attributes:
        stage: its id.
        history: what training logged, entry by entry.
        structure: what pruning kept (`methods.structure`); None for a stock shape.
        config: the checkpoint's config.json.
        choice: what a search under a budget predicted and measured (`stages.searching`); None without a budget.
    """

    stage: str
    history: tuple[Mapping[str, float], ...] = ()
    structure: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    choice: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Drawn:
    """A figure and what it says.

    Attributes:
        title: what it shows.
        text: the same as a sentence, for who does not see it.
        figure: the Plotly figure.
        table: its numbers.
    """

    title: str
    text: str
    figure: Any
    table: TextTable


@dataclass(frozen=True)
class Point:
    """A candidate in a plane of quality and cost."""

    name: str
    quality: Quality
    cost: float
    cost_ci95: Interval | None
    note: str = ""


def plotly_js() -> str:
    """The library that draws the figures in the browser."""
    return str(get_plotlyjs())


def waterfall(report: Report, chain: Sequence[Candidate], workload: str, phase: Phase) -> Drawn | None:
    """What each step does to CPU-seconds per token, and below it to the headline metric."""
    steps = [(one, row) for one in chain for row in one.measurements if (row.workload, row.phase) == (workload, phase)]
    steps = [(one, row) for one, row in steps if one.quality]
    if len(steps) < 2:
        return None
    names = [one.id for one, _ in steps]
    costs = [row.cpu_s_per_token * 1e6 for _, row in steps]
    changes = [costs[0], *(after - before for before, after in pairwise(costs))]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    bars = go.Waterfall(
        x=[*names, "result"],
        y=[*changes, costs[-1]],
        measure=["absolute", *["relative"] * (len(names) - 1), "total"],
        text=[f"{words.significant(cost)} µs" for cost in [*costs, costs[-1]]],
        textposition="outside",
        constraintext="none",
        cliponaxis=False,
        decreasing={"marker": {"color": GREEN}},
        increasing={"marker": {"color": ORANGE}},
        totals={"marker": {"color": BLUE}},
        connector={"line": {"color": GREY, "width": 1}},
    )
    figure.add_trace(bars, row=1, col=1)
    rows = [one.quality[0] for one, _ in steps]
    metric = rows[0].metric
    figure.add_trace(_errors([*names], rows, metric), row=2, col=1)
    figure.update_yaxes(title_text="CPU-µs per token", row=1, col=1, range=[0, max(costs) * 1.18])
    figure.update_yaxes(title_text=_axis(metric), row=2, col=1)
    table = TextTable(
        f"steps, {workload}, {phase}",
        ("step", "CPU-s / token", "change", metric),
        tuple(
            (
                one.id,
                words.with_unit(row.cpu_s_per_token, "s"),
                words.NONE if number == 0 else f"{costs[number] / costs[number - 1] - 1:+.0%}",
                words.quality(one.quality[0]),
            )
            for number, (one, row) in enumerate(steps)
        ),
    )
    n_steps = "1 step" if len(names) == 2 else f"{len(names) - 1} steps"
    text = (
        f"From {names[0]} to {names[-1]}, CPU time per token goes from {words.significant(costs[0])} to "
        f"{words.significant(costs[-1])} microseconds in {n_steps}, and {metric} from "
        f"{words.quality(rows[0])} to {words.quality(rows[-1])}."
    )
    return Drawn(f"What each step earns and costs: {workload}, {phase}", text, styled(figure, 520), table)


def _errors(x: list[str], rows: Sequence[Quality], metric: str) -> Any:
    scale = 100.0 if metric in SHARES else 1.0
    values = [row.value * scale for row in rows]
    high = [0.0 if row.ci95 is None else (row.ci95.high - row.value) * scale for row in rows]
    low = [0.0 if row.ci95 is None else (row.value - row.ci95.low) * scale for row in rows]
    return go.Scatter(
        x=x,
        y=values,
        mode="lines+markers",
        line={"color": GREY, "width": 1, "dash": "dot"},
        marker={"color": PURPLE, "size": 9},
        error_y={"type": "data", "array": high, "arrayminus": low, "color": PURPLE, "thickness": 1.5},
    )


def _axis(metric: str) -> str:
    return f"{metric}, %" if metric in SHARES else metric


def points_of(report: Report, workload: str, phase: Phase) -> list[Point]:
    """The judged candidates on one workload."""
    return [
        Point(name_of(report, one.id), one.quality[0], row.cpu_s_per_token, row.cpu_s_per_token_ci95)
        for one in report.candidates
        for row in one.measurements
        if one.quality and (row.workload, row.phase) == (workload, phase)
    ]


def relative_points(report: Report, row_of: Mapping[str, Measurement], prefix: str) -> list[Point]:
    """Candidates by their paired ratio to their own run's baseline: what may be held against another run."""
    points = []
    for one in report.candidates:
        row = row_of.get(one.id)
        ratio = None if row is None else row.cpu_s_per_token_ratio
        if not one.quality or row is None or (ratio is None and one.id != report.baseline):
            continue
        value, ci95 = (1.0, None) if ratio is None or one.id == report.baseline else (ratio.value, ratio.ci95)
        points.append(Point(f"{prefix}: {name_of(report, one.id)}", across_runs(one.quality), value, ci95, prefix))
    return points


def across_runs(rows: Sequence[Quality]) -> Quality:
    """The row that may be held against another run's: a token is what a vocabulary makes it, a byte is a byte."""
    if rows[0].metric == "token_perplexity":
        return next((row for row in rows if row.metric == "byte_perplexity"), rows[0])
    return rows[0]


def dominated(points: Sequence[Point]) -> list[bool]:
    """Whether another point costs no more and is no worse, and is better in one of the two."""
    sign = -1.0 if points and points[0].quality.metric in LESS_IS_BETTER else 1.0

    def beats(other: Point, one: Point) -> bool:
        gain = sign * (other.quality.value - one.quality.value)
        return gain >= 0 and other.cost <= one.cost and (gain > 0 or other.cost < one.cost)

    return [any(beats(other, one) for other in points) for one in points]


def pareto(points: Sequence[Point], title: str, cost_axis: str, scale: float = 1e6) -> Drawn | None:
    """Quality against cost with 95 % intervals; what is dominated is grey and hollow."""
    if len(points) < 2:
        return None
    metric = points[0].quality.metric
    grey = dominated(points)
    figure = go.Figure()
    places = label_places(points, grey)
    groups = (("not dominated", False, BLUE, "circle"), ("dominated", True, GREY, "circle-open"))
    for name, is_grey, colour, symbol in groups:
        group = [point for point, flag in zip(points, grey, strict=True) if flag == is_grey]
        if group:
            figure.add_trace(_cloud(group, name, colour, symbol, scale, places))
    figure.update_xaxes(**cost_scale([point.cost * scale for point in points]))
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(title_text=cost_axis)
    figure.update_yaxes(title_text=_axis(metric) + (" (less is better)" if metric in LESS_IS_BETTER else ""))
    best = [point.name for point, flag in zip(points, grey, strict=True) if not flag]
    rows = tuple(
        (
            point.name,
            words.quality(point.quality),
            words.with_interval(point.cost * scale, _scaled(point.cost_ci95, scale)),
            "dominated" if flag else "",
        )
        for point, flag in zip(points, grey, strict=True)
    )
    text = (
        f"Of {len(points)} candidates, {len(best)} are not dominated on {metric} and cost: {', '.join(best)}. "
        "Dominated goes by the values; where intervals overlap, the order may be chance."
    )
    table = TextTable(title, ("candidate", metric, cost_axis, ""), rows)
    return Drawn(title, text, styled(figure, 430), table)


def cost_scale(costs: Sequence[float]) -> dict[str, Any]:
    """Linear from zero, or logarithmic with ticks at 1, 2 and 5 where costs are far apart."""
    low, high = min(costs), max(costs)
    if high <= 4 * low:
        return {"range": [0, high * 1.25]}
    ends = math.log10(low / 1.5), math.log10(high * 2)
    ticks = [
        digit * 10.0**power
        for power in range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
        for digit in ((1, 2, 5) if ends[1] - ends[0] < 2.5 else (1,))
        if ends[0] <= math.log10(digit * 10.0**power) <= ends[1]
    ]
    return {"type": "log", "range": ends, "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def label_places(points: Sequence[Point], grey: Sequence[bool]) -> dict[str, str]:
    """Where each name stands beside its point: the winner and the baseline first, then what is not dominated. A name
    that would cover a point or another name is left to the table. A place that is wide enough on a phone goes first.
    """
    at = [_fraction(point.cost, [one.cost for one in points]) for point in points]
    ends = [end for point in points for end in _ends(point.quality)]
    span = (max(ends) - min(ends)) * 1.1 or 1.0
    up = [0.05 + (point.quality.value - min(ends)) / span for point in points]
    marks = [(x - 0.01, x + 0.01, y - 0.012, y + 0.012) for x, y in zip(at, up, strict=True)]
    taken = {PHONE: marks, DESK: list(marks)}
    first = ("(selected)", "(baseline)")
    order = [(not one.name.endswith(first), flag, one.cost) for one, flag in zip(points, grey, strict=True)]
    places = {}
    for number in sorted(range(len(points)), key=lambda number: order[number]):
        for per_letter, side, level in product((PHONE, DESK), ("right", "left"), ("top", "bottom")):
            boxes = {width: _box(at[number], up[number], points[number].name, side, level, width) for width in taken}
            box = boxes[per_letter]
            if box[0] >= 0 and box[1] <= 1 and not any(_overlap(box, other) for other in taken[per_letter]):
                places[points[number].name] = f"{level} {side}"
                for width, own in boxes.items():
                    taken[width].append(own)
                break
    return places


def _box(x: float, y: float, name: str, side: str, level: str, per_letter: float) -> Box:
    width = 0.02 + per_letter * len(name)
    left, middle = (x if side == "right" else x - width), y + (0.045 if level == "top" else -0.045)
    return left, left + width, middle - 0.03, middle + 0.03


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[1] and one[1] >= other[0] and one[2] <= other[3] and one[3] >= other[2]


def _fraction(cost: float, costs: Sequence[float]) -> float:
    """How far along the axis of `cost_scale` a cost lies, 0 to 1."""
    low, high = min(costs), max(costs)
    if high <= 4 * low:
        return cost / (high * 1.25)
    return math.log(cost * 1.5 / low) / math.log(high * 3 / low)


def _ends(row: Quality) -> tuple[float, float]:
    return (row.value, row.value) if row.ci95 is None else (row.ci95.low, row.ci95.high)


def _scaled(ci95: Interval | None, scale: float) -> Interval | None:
    return None if ci95 is None else Interval(low=ci95.low * scale, high=ci95.high * scale)


def _cloud(group: Sequence[Point], name: str, colour: str, symbol: str, scale: float, places: Mapping[str, str]) -> Any:
    factor = 100.0 if group[0].quality.metric in SHARES else 1.0
    costs = [_scaled(point.cost_ci95, scale) for point in group]
    quality = [point.quality for point in group]
    return go.Scatter(
        x=[point.cost * scale for point in group],
        y=[row.value * factor for row in quality],
        name=name,
        mode="markers+text",
        text=[point.name if point.name in places else "" for point in group],
        hovertext=[point.name for point in group],
        textposition=[places.get(point.name, "top right") for point in group],
        marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2, "color": colour}},
        error_x={
            "type": "data",
            "array": [0.0 if ci is None else ci.high - p.cost * scale for ci, p in zip(costs, group, strict=True)],
            "arrayminus": [0.0 if ci is None else p.cost * scale - ci.low for ci, p in zip(costs, group, strict=True)],
            "color": colour,
            "thickness": 1,
        },
        error_y={
            "type": "data",
            "array": [0.0 if row.ci95 is None else (row.ci95.high - row.value) * factor for row in quality],
            "arrayminus": [0.0 if row.ci95 is None else (row.value - row.ci95.low) * factor for row in quality],
            "color": colour,
            "thickness": 1,
        },
    )


def training_curves(records: Sequence[StageRecord]) -> list[Drawn]:
    """Loss and validation of each stage that trained."""
    return [_curve(record) for record in records if any("loss" in entry for entry in record.history)]


def _curve(record: StageRecord) -> Drawn:
    keys = list(dict.fromkeys(key for entry in record.history for key in entry if key.startswith("validation_")))
    metrics = [key for key in keys if key != "validation_loss"]
    figure = make_subplots(rows=2 if metrics else 1, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    steps = max(entry["step"] for entry in record.history)
    said, rows = [], []
    for key in ("loss", *keys):
        seen = [(entry["step"], entry[key]) for entry in record.history if key in entry]
        xs, ys = [x for x, _ in seen], [y for _, y in seen]
        name = "training loss" if key == "loss" else key.replace("_", " ")
        figure.add_trace(_line(xs, ys, name, key), row=2 if key in metrics else 1, col=1)
        said.append(f"{name} goes from {words.significant(ys[0])} to {words.significant(ys[-1])}")
        rows.append((name, words.significant(ys[0]), words.significant(ys[-1]), str(len(ys))))
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(title_text="step", row=2 if metrics else 1, col=1)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    if metrics:
        figure.update_yaxes(title_text="validation", row=2, col=1, tickformat=".3~g")
    table = TextTable(f"training of {record.stage}", ("curve", "first", "last", "points"), tuple(rows))
    text = f"In {steps:.0f} steps, {', '.join(said)}."
    return Drawn(f"Training of {record.stage}", text, styled(figure, 440 if metrics else 320), table)


def _line(xs: list[float], ys: list[float], name: str, key: str) -> Any:
    if key == "loss":
        return go.Scatter(x=xs, y=ys, name=name, line={"color": BLUE, "width": 1.5})
    colour, symbol = (ORANGE, "circle") if key == "validation_loss" else (PURPLE, "diamond")
    line, marker = {"color": colour, "width": 1.5, "dash": "dot"}, {"size": 8, "symbol": symbol}
    return go.Scatter(x=xs, y=ys, name=name, mode="lines+markers", line=line, marker=marker)


def kept_structure(record: StageRecord, before: Mapping[str, Any]) -> Drawn | None:
    """The share of heads and neurons that each layer kept, as a heat-map.

    Args:
        record: of the pruned checkpoint.
        before: config of the checkpoint that was pruned.
    """
    whole = [
        _first(before, "num_attention_heads", "n_head"),
        _first(before, "num_key_value_heads", "num_attention_heads", "n_head"),
        _first(before, "intermediate_size", "n_inner") or 4 * (_first(before, "n_embd") or 0),
    ]
    if record.structure is None or not all(whole):
        return None
    columns = ("heads", "key/value heads", "feed-forward neurons")
    layers = record.structure["layers"]
    kept = [[layer["n_heads"], layer["n_kv_heads"], layer["ffn_width"]] for layer in layers]
    for counts, layer in zip(kept, layers, strict=True):
        skipped = layer.get("skip", [])
        counts[:] = [
            0 if part in skipped else count
            for count, part in zip(counts, ("attention", "attention", "ffn"), strict=True)
        ]
    shares = [[count / (total or 1) for count, total in zip(row, whole, strict=True)] for row in kept]
    cells = [[f"{count:,} of {total:,}" for count, total in zip(row, whole, strict=True)] for row in kept]
    names = [f"layer {number}" for number in range(len(layers))]
    heat = go.Heatmap(
        z=shares, x=columns, y=names, text=cells, texttemplate="%{text}", zmin=0, zmax=1, xgap=2, ygap=2,
        colorscale=[[0, "#c9a2d8"], [0.5, "#a9c6ee"], [1, "#9fd8bd"]],
        colorbar={"tickformat": ".0%", "title": {"text": "kept"}, "thickness": 12},
        textfont={"color": "#111111"},
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_yaxes(autorange="reversed")
    table = TextTable("kept structure", ("layer", *columns), tuple((n, *c) for n, c in zip(names, cells, strict=True)))
    mean = [sum(row[number] for row in shares) / len(shares) for number in (0, 2)]
    text = (
        f"Over {len(layers)} layers that were kept ({record.structure['layers_kept']}), {mean[0]:.0%} of the attention "
        f"heads and {mean[1]:.0%} of the feed-forward neurons of each layer remain on average."
    )
    text = " ".join([text, *_budget_kept(record.choice)])
    return Drawn(f"What {record.stage} kept", text, styled(figure, 170 + 34 * len(layers)), table)


def _budget_kept(choice: Mapping[str, Any] | None) -> list[str]:
    """What the structure was predicted to cost, and what its export measured."""
    if choice is None:
        return []
    budget = ", ".join(f"{name} {limit}" for name, limit in choice["budget"].items())
    said = [f"Chosen for the budget {budget}; predicted {choice['predicted_cost_ratio']:.3f} of the dense cost."]
    if "precisions" in choice:
        chosen = [(n, kind, one) for n, layer in enumerate(choice["precisions"]) for kind, one in layer.items()]
        wide = ", ".join(f"{kind} of layer {n}" for n, kind, one in chosen if one == "fp32")
        said.append(
            f"Of {len(chosen)} sublayers that remain, these stay in fp32 and the others go to INT8: {wide}."
            if wide
            else f"All {len(chosen)} sublayers that remain go to INT8."
        )
    if "measured" not in choice:
        return said
    return [
        *said,
        f"The exported shape measured {choice['measured_cost_ratio']:.3f}, {choice['tolerance']:.1%} off being allowed "
        f"(the dense model differed from itself by up to {choice['measured']['aa_bound']:.1%}).",
    ]


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)


def styled(figure: Any, height: int) -> Any:
    """The look that all figures share: transparent paper, quiet grid, no toolbar."""
    figure.update_layout(
        height=height,
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 64, "r": 24, "t": 28, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 13},
        showlegend=figure.layout.legend.orientation == "h",
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(automargin=True, gridcolor="rgba(140,140,140,0.25)", zeroline=False, fixedrange=True)
    figure.update_yaxes(automargin=True, gridcolor="rgba(140,140,140,0.25)", zeroline=False, fixedrange=True)
    return figure
