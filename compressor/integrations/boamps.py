"""BoAmps energy reports (Boavizta's open format): one of using the model, one of making it.

The format has words for how a figure was had (`measurementMethod`, `cpuTrackingMode`, `quality`), so estimates may
enter: as method "estimated ...", tracking `constant` and quality `low`. Fields that we cannot know (country, cloud
provider) are left out.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from compressor.errors import UserError
from compressor.integrations.energy_facts import (
    PER_REQUESTS,
    TRAINING_KINDS,
    Amount,
    add,
    amount_of,
    chosen,
    inference,
    making,
    training_activity,
)
from compressor.schema.report import Candidate, Report


def boamps_inference(report: Report, *, workload: str | None = None) -> dict[str, Any]:
    """The report of using the selected candidate: the energy and the requests of one session.

    Raises:
        UserError: no session whose energy may be stated.
    """
    candidate = chosen(report)
    reasons = []
    for use in inference(candidate):
        if workload not in (None, use.row.workload):
            continue
        session = amount_of(use.row.energy)
        if isinstance(use.energy, str) or isinstance(session, str) or use.unit != "request":
            why = use.energy if isinstance(use.energy, str) else "the format counts requests, not generated tokens"
            reasons.append(f"{use.row.workload} ({use.row.phase}): {why}")
            continue
        n_requests = round(PER_REQUESTS * session.j / use.energy.j)
        task = {
            "taskStage": "inference",
            "taskFamily": _family(report),
            "nbRequest": n_requests,
            "algorithms": [_algorithm(report, candidate)],
            "dataset": [_dataset(report, "test", n_requests)],
            **_accuracy(candidate),
            "taskDescription": f"workload {use.row.workload}, phase {use.row.phase}, batch {use.row.batch}, "
            f"{use.row.threads} threads; inference process only",
        }
        return _report(report, task, session)
    raise UserError(f"no energy of {candidate.id} to export: {'; '.join(reasons) or 'nothing measured'}")


def boamps_training(report: Report) -> dict[str, Any]:
    """The report of making the selected candidate: all its stages, teachers included.

    A stage too short to meter is named in the description as missing from the sum.

    Raises:
        UserError: no stage whose energy may be stated.
    """
    candidate = chosen(report)
    stages = making(report, candidate)
    amounts = [one.energy for one in stages if isinstance(one.energy, Amount)]
    left_out = "; ".join(f"{one.stage}: {one.energy}" for one in stages if isinstance(one.energy, str))
    if not amounts:
        raise UserError(f"no energy of making {candidate.id} to export: {left_out or 'no stage recorded'}")
    trained = any(one.kind in TRAINING_KINDS for one in stages)
    task = {
        "taskStage": training_activity(report).replace("-", "") if trained else "compression",
        "taskFamily": _family(report),
        "algorithms": [_algorithm(report, candidate)],
        "dataset": [_dataset(report, "train", None)],
        **_accuracy(candidate),
        "taskDescription": "compression pipeline: "
        + ", ".join(f"{one.stage} ({one.kind})" for one in stages if isinstance(one.energy, Amount))
        + (f"; NOT in the sum: {left_out}" if left_out else ""),
    }
    return _report(report, task, add(amounts))


def _report(report: Report, task: dict[str, Any], energy: Amount) -> dict[str, Any]:
    environment = report.environment
    return {
        "header": {"reportDatetime": report.created[:19].replace("T", " "), "reportStatus": "draft"},
        "task": task,
        "measures": [_measure(energy)],
        **({"system": {"os": environment["platform"]}} if "platform" in environment else {}),
        "software": {
            "language": "python",
            **({"version": environment["python"]} if "python" in environment else {}),
        },
        "infrastructure": {"infraType": "other", "components": _components(environment)},
        "quality": _quality(energy),
    }


def _measure(energy: Amount) -> dict[str, Any]:
    measure: dict[str, Any] = {
        "measurementMethod": f"joule-compressor: {energy.text}",
        "version": version("joule-compressor"),
        "cpuTrackingMode": "constant" if energy.kind == "estimated" else energy.method.lower(),
        "powerConsumption": energy.kwh,
    }
    if energy.wall_s is not None:
        measure["measurementDuration"] = energy.wall_s
    return measure


def _quality(energy: Amount) -> str:
    """The format's words: within 10 %, within 25 %, or worse."""
    if energy.kind == "estimated" or energy.plus_minus_j is None:
        return "low"
    share = energy.plus_minus_j / energy.j
    return "high" if share <= 0.10 else "medium" if share <= 0.25 else "low"


def _family(report: Report) -> str:
    return str(report.pipeline.get("model", {}).get("task", "text")).replace("-", " ")


def _algorithm(report: Report, candidate: Candidate) -> dict[str, Any]:
    hub = report.pipeline.get("model", {}).get("hub")
    framework_version = report.environment.get("versions", {}).get(candidate.runtime)
    return {
        "algorithmType": "neural network",
        "algorithmName": "transformer",
        "foundationModelName": report.model,
        **({"foundationModelUri": f"https://huggingface.co/{hub}"} if hub else {}),
        "parametersNumber": candidate.parameters / 1e9,
        "framework": candidate.runtime,
        **({"frameworkVersion": framework_version} if framework_version else {}),
        "quantization": candidate.scheme,
    }


def _dataset(report: Report, split: str, n_texts: int | None) -> dict[str, Any]:
    quantity = n_texts if n_texts is not None else report.data.get(split, {}).get("rows")
    hub = (report.pipeline.get("data", {}).get(split) or {}).get("hub")
    return {
        "dataUsage": "input",
        "dataType": "text",
        **({"dataQuantity": quantity} if quantity is not None else {}),
        **({"sourceUri": f"https://huggingface.co/datasets/{hub}"} if hub else {}),
    }


def _accuracy(candidate: Candidate) -> dict[str, Any]:
    found = next((row.value for row in candidate.quality if row.metric == "accuracy"), None)
    return {} if found is None else {"measuredAccuracy": found}


def _components(environment: dict[str, Any]) -> list[dict[str, Any]]:
    visible = environment.get("processors")
    name = environment.get("cpu", "unknown")
    cpu: dict[str, Any] = {"componentType": "cpu", "nbComponent": 1, "componentName": name}
    if visible is not None:
        cpu["componentName"] = f"{name}, {visible} logical processors visible"
    if environment.get("cpu_family"):
        cpu["family"] = environment["cpu_family"]
    components = [cpu]
    if environment.get("memory_bytes"):
        components.append({"componentType": "ram", "nbComponent": 1, "memorySize": environment["memory_bytes"] / 1e9})
    return components
