"""The sentences and tables of a model card, section by section. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from compressor.measurement.certificate import certificate_of
from compressor.render import words
from compressor.render.markdown import markdown_table
from compressor.render.tables import TextTable, cost_tables, name_of, payback_table, quality_table, stage_table
from compressor.schema.certificate import Certificate
from compressor.schema.report import Candidate, Report
from compressor.spec.pipeline import Pipeline
from compressor.spec.sources import DataSource
from compressor.spec.stages import Stage
from compressor.spec.tasks import TASKS


def summary_text(report: Report, candidate: Candidate) -> str:
    """What it is, in two sentences: size, CPU-seconds and the headline metric. Never joules."""
    what = "an ONNX graph for ONNX Runtime" if candidate.runtime == "onnxruntime" else "PyTorch weights"
    text = (
        f"{report.model}, compressed: {what} in {candidate.scheme}, {candidate.parameters:,} parameters, "
        f"{candidate.size_bytes / 1e6:.1f} MB."
    )
    base = next((one for one in report.candidates if one.id == report.baseline), None)
    facts = []
    for row in candidate.measurements[:1]:
        if row.cpu_s_per_token_ratio is not None and base is not None and base is not candidate:
            valid = "" if row.valid else ", in a session that was not valid"
            ratio = words.ratio(row.cpu_s_per_token_ratio)
            facts.append(f"it takes {ratio} the CPU-seconds per token of {report.baseline} ({row.workload}{valid})")
    if base is not None and base.quality and base is not candidate:
        metric = candidate.quality[0].metric
        facts.append(
            f"its {metric} is {words.quality(candidate.quality[0])} where {report.baseline} has "
            f"{words.quality(next((row for row in base.quality if row.metric == metric), None))}"
        )
    return text if not facts else f"{text} Measured, {' and '.join(facts)} (in brackets 95 % intervals)."


def made_text(report: Report, pipeline: Pipeline, lineage: Sequence[Stage]) -> str:
    """Source, stages with their settings, teacher, data and seed."""
    lines = [f"1. source: {report.model}"]
    for number, stage in enumerate(lineage, 2):
        settings = stage.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"id", "stage", "from_"})
        shown = ", ".join(f"{key} {value}" for key, value in flat(settings))
        lines.append(f"{number}. **{stage.id}** ({stage.stage})" + (f": {shown}" if shown else ""))
    teachers = list(dict.fromkeys(stage.teacher for stage in lineage if stage.stage == "distill"))
    notes = [f"- teacher: {', '.join(teachers)}"] if teachers else []
    data = pipeline.data
    for split, source in (
        ("train", data.train),
        ("validation", data.validation),
        ("calibration", data.calibration),
        ("test", data.test),
    ):
        digest = report.data.get(split, {}).get("digest")
        if source is not None or digest is not None:
            name = f"{data.calibration_rows} rows of the training split" if source is None else _data_name(source)
            notes.append(f"- {split} data: {name}" + (f" (sha256 of the rows {digest[:16]})" if digest else ""))
    notes.append("- the test split was read by no stage, only to judge")
    versions = report.environment.get("versions", {})
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "onnxruntime") if name in versions
    )
    notes.append(
        f"- seed {pipeline.seed}; settings that are not named are the defaults" + (f"; {named}" if named else "")
    )
    return "\n".join(lines) + "\n\n" + "\n".join(notes)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys with their values as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", "[" + ", ".join(str(one) for one in value) + "]"
        else:
            yield f"{prefix}{key}", str(value)


def _data_name(source: DataSource) -> str:
    if source.hub is not None:
        return " ".join(part for part in (source.hub, source.subset, source.split) if part is not None)
    return "/".join((source.path or "").replace("\\", "/").split("/")[-2:])


def costs_text(report: Report) -> str:
    """Cost of use, cost of making, break-even, building and carbon, each with where it comes from."""
    parts = []
    for table in (*cost_tables(report), stage_table(report), payback_table(report)):
        if table is not None:
            parts.append(_section(table))
    for assumed in (*report.facility, *report.carbon):
        parts.append(f"- {assumed.text}")
    return "\n\n".join(parts) if parts else "Nothing was measured."


def _section(table: TextTable) -> str:
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"### {table.title.capitalize()}\n\n{markdown_table(table)}" + (f"\n\n{notes}" if notes else "")


def losses_text(report: Report, candidate: Candidate) -> str:
    """Every metric of this candidate and the baseline, the goals and the verdicts."""
    table = quality_table(report)
    assert table is not None  # a candidate without quality has no card
    wanted = {name_of(report, report.baseline), name_of(report, candidate.id)}
    parts = [_section(replace(table, rows=tuple(row for row in table.rows if row[0] in wanted)))]
    lines = []
    if candidate.id == report.selected:
        lines += [f"- goal: {goal.text}" for goal in report.goals] or ["- it was held to no goal"]
    verdicts = [verdict for verdict in report.verdicts if verdict.candidate == candidate.id]
    lines += [f"- {verdict.text} ({'; '.join(verdict.reasons)})" for verdict in verdicts]
    return "\n\n".join([*parts, "\n".join(lines)] if lines else parts)


def certificate_text(report: Report, candidate: Candidate) -> str:
    """Certified or not, on what machine, against which limits, and each label's share."""
    found = certificate_of(report, candidate.id)
    if found is None:
        return "Not certified: this report was written without certificates."
    baseline = (
        "unknown" if found.baseline is None else f"{found.baseline.candidate} (sha256 {found.baseline.sha256[:16]})"
    )
    limits = [", ".join(f"{key} {value}" for key, value in flat(limit) if key != "against") for limit in found.limits]
    lines = [
        f"**{found.sentence()}.**",
        markdown_table(certificate_table(found)),
        f"- limits: {'; '.join(limits) or 'none'}\n"
        f"- file: `{found.of.file}`, sha256 `{found.of.sha256}`\n"
        f"- baseline: {baseline}\n"
        f"- provider {found.machine.get('provider') or 'none'}, {found.machine.get('threads')} threads; another "
        "processor or runtime may answer otherwise: `compressor certify` repeats it there",
    ]
    return "\n\n".join(lines)


def certificate_table(found: Certificate) -> TextTable:
    """Every metric and label of a certificate, with its limit."""
    rows = tuple(
        (
            one.metric if one.label is None else f"{one.metric} of {one.label}",
            f"{one.n:,}",
            words.NONE if one.value is None else f"{one.value:.4f}",
            words.NONE if one.baseline is None else f"{one.baseline:.4f}",
            words.NONE if one.delta is None else f"{one.delta:+.4f} ({one.delta_low:+.4f} to {one.delta_high:+.4f})",
            one.status.replace("_", " "),
        )
        for one in found.figures
    )
    digest = found.of.sha256[:16]
    return TextTable(
        f"certificate of sha256 {digest}", ("metric", "n", "value", "baseline", "difference", "limit"), rows
    )


def loading_text(
    candidate: Candidate, pipeline: Pipeline, lineage: Sequence[Stage], *, repository: str | None = None
) -> str:
    """With this toolkit, with Transformers, with ONNX Runtime."""
    name = repository or "FOLDER"
    task = TASKS[pipeline.model.task]
    call = 'model.generate(["..."], max_new_tokens=32)' if task.is_decoder else 'model.predict(["..."])'
    parts = [
        "With this toolkit, which verifies every file first (an ONNX variant needs no PyTorch):",
        f'```python\nimport compressor\n\nmodel = compressor.load("{name}", precision="{candidate.variant}")\n'
        f"{call}\n```",
    ]
    if candidate.runtime == "onnxruntime":
        parts += ["With ONNX Runtime:", _onnx_code(candidate, is_decoder=task.is_decoder, repository=repository)]
        tag = task.onnx_task
        parts += [
            "In a pipeline of Transformers (needs PyTorch for its tensors, runs the ONNX graph):",
            f'```python\nfrom transformers import pipeline\n\npipe = pipeline("{tag}", model=model.for_transformers(), '
            "tokenizer=model.tokenizer)\n```",
        ]
        parts.append("With Transformers, which reads the fp32 weights that this graph was made from, not the graph:")
    else:
        parts.append("With Transformers:")
    parts.append(
        f"```python\nfrom transformers import {task.auto_class}, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = {task.auto_class}.from_pretrained("{name}")\n```'
    )
    if any(stage.stage == "prune" for stage in lineage):
        parts.append(
            "Pruning took heads or neurons out. Where the remaining shape is one that the model's stock config cannot "
            "say, Transformers refuses the weights, and `compressor.load` is the way."
        )
    return "\n\n".join(parts)


def _onnx_code(candidate: Candidate, *, is_decoder: bool, repository: str | None) -> str:
    hub = "" if repository is None else "from huggingface_hub import snapshot_download\n"
    folder = '"FOLDER"' if repository is None else f'snapshot_download("{repository}")'
    # A decoder's graph also takes its key-value cache, which is a loop to write, not a line.
    run = (
        "print([(one.name, one.shape) for one in session.get_inputs()])"
        if is_decoder
        else 'logits = session.run(["logits"], {one.name: inputs[one.name] for one in session.get_inputs()})[0]'
    )
    return f"""```python
import json
import onnxruntime
{hub}from transformers import AutoTokenizer

folder = {folder}
manifest = json.load(open(f"{{folder}}/compressor.json"))
file = next(one["path"] for one in manifest["content"]["variants"] if one["id"] == "{candidate.variant}")
session = onnxruntime.InferenceSession(f"{{folder}}/{{file}}", providers=["CPUExecutionProvider"])
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(["..."], return_tensors="np")
{run}
```"""


def limits_text(report: Report, candidate: Candidate) -> str:
    """What the figures do not say."""
    here = report.environment
    row = candidate.quality[0]
    cpu = here.get("cpu_family") or here.get("cpu") or "one processor"
    guest = " in a virtual machine" if here.get("hypervisor") else ""
    unit = "tokens" if "perplexity" in row.metric else "rows"
    lines = [
        f"quality is known on {row.n:,} {unit} of one test split, no more",
        f"cost was measured on {cpu}{guest} alone; another processor has other figures",
    ]
    results = [one.energy.result for one in candidate.measurements if one.energy.result is not None]
    if any(one["kind"] == "estimated" for one in results):
        lines.append("energy is an estimate from CPU and wall seconds; no joule was measured")
    if "8" in candidate.scheme or "4" in candidate.scheme:
        lines.append("integer kernels differ between processors: the same file may answer otherwise elsewhere")
    profiles = dict.fromkeys(one.profile for one in candidate.measurements)
    if "smoke" in profiles:
        lines.append("the profile `smoke` only shows that the path works: its cost figures are no basis for a choice")
    if any(not one.valid for one in candidate.measurements):
        lines.append("at least one session was not valid; the remarks under its table say why")
    lines += [f"not judged: {one.where} ({one.text})" for one in report.failures]
    lines.append(f"whatever bias {report.model} and the training text have was neither removed nor measured")
    return "\n".join(f"- {line}" for line in lines)
