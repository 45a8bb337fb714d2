"""``energy-result/1``: an energy result as JSON, and the check that its joules follow from its log.

Measured and estimated records have different keys, a measured one carries its raw integers, and `verify` recomputes
every joule from them. An estimate can be read back, but it never verifies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from compressor.energy import counter
from compressor.energy.domain import CounterWindow, Domain, DomainLog, Provenance, Quantity, Scope
from compressor.energy.types import EnergyResult, EstimatedEnergy, InvalidEnergy, MeasuredEnergy, measured_from
from compressor.errors import EnergyError

SCHEMA = "energy-result/1"
SCHEMA_FILE = Path(__file__).with_name("energy_result.schema.json")
# A record is read from JSON that anyone may have written.
Json = dict[str, Any]

_BAND_KEYS = ("est_energy_gross_low_j", "est_energy_gross_j", "est_energy_gross_high_j")
_NET_BAND_KEYS = ("est_energy_net_low_j", "est_energy_net_j", "est_energy_net_high_j")


def to_json(result: EnergyResult) -> Json:
    """The record of a result, ready for ``json.dumps``."""
    windows = [_window_to_json(window) for window in result.windows]
    record: Json = {"schema": SCHEMA}
    if isinstance(result, InvalidEnergy):
        record |= {"kind": "invalid", "reason": result.reason, "meter": result.meter}
    elif isinstance(result, MeasuredEnergy):
        record |= {
            "kind": "measured",
            "energy_gross_j": result.energy_gross_j,
            "energy_uncertainty_j": result.energy_uncertainty_j,
            "energy_net_j": result.energy_net_j,
            "net_reason": result.net_reason,
            "provenance": result.provenance.value,
            "meter": result.meter,
            "notes": list(result.notes),
            "log_sha256": _digest(windows),
        }
    else:
        record |= {"kind": "estimated"}
        record |= {key: getattr(result, key) for key in _BAND_KEYS + _NET_BAND_KEYS}
        record |= {
            "reason": result.reason,
            "net_reason": result.net_reason,
            "provenance": result.provenance.value,
            "method": result.method,
            "inputs": dict(result.inputs),
            "notes": list(result.notes),
        }
    return record | {
        "wall_s": result.wall_s,
        "scopes": [scope.value for scope in result.scopes],
        "windows": windows,
    }


def from_json(record: Mapping[str, Any]) -> EnergyResult:
    """Read a record back; a measured one only where its joules follow from its log.

    Raises:
        EnergyError: another schema, a missing key, an estimate without a band, a measured result whose log is absent
            or edited.
    """
    try:
        return _from_json(record)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise EnergyError(f"not a complete {SCHEMA} record: {type(error).__name__}: {error}") from error


def verify(record: Mapping[str, Any]) -> MeasuredEnergy:
    """Recompute every joule of a measured record from its raw integers.

    Returns:
        The result as recomputed.

    Raises:
        EnergyError: the record is an estimate or invalid, its log is absent or edited, or a joule does not follow.
    """
    kind = record.get("kind")
    if kind == "estimated":
        raise EnergyError("this is an estimate: it has no counter log from which joules could be verified")
    if kind != "measured":
        raise EnergyError(f"nothing to verify: the record's kind is {kind!r}, not 'measured'")
    result = from_json(record)
    assert isinstance(result, MeasuredEnergy)
    return result


def verify_file(path: Path) -> list[MeasuredEnergy]:
    """Verify every energy record inside a JSON file, at any depth.

    Raises:
        EnergyError: naming the place in the file, or when there is no energy record in it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EnergyError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise EnergyError(f"is not JSON: {error}", where=str(path)) from error
    verified = []
    for place, record in _find_records(document, ""):
        try:
            verified.append(verify(record))
        except EnergyError as error:
            raise EnergyError(error.message, where=f"{path}:{place or '(top)'}") from error
    if not verified:
        raise EnergyError(f"holds no {SCHEMA} record", where=str(path))
    return verified


def _find_records(node: object, place: str) -> Iterator[tuple[str, Json]]:
    if isinstance(node, dict):
        if node.get("schema") == SCHEMA:
            yield place, node
            return
        for key, value in node.items():
            yield from _find_records(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _find_records(value, f"{place}[{i}]")


def _from_json(record: Mapping[str, Any]) -> EnergyResult:
    if record.get("schema") != SCHEMA:
        raise EnergyError(f"expected schema {SCHEMA!r}, found {record.get('schema')!r}")
    scopes = tuple(Scope(name) for name in record["scopes"])
    windows = tuple(_window_from_json(window) for window in record["windows"])
    if record["kind"] == "invalid":
        return InvalidEnergy(record["reason"], record["meter"], record["wall_s"], scopes, windows)
    if record["kind"] == "measured":
        return _verified(record, windows, scopes)
    if record["kind"] != "estimated":
        raise EnergyError(f"unknown kind of energy result: {record['kind']!r}")
    bands = {key: record[key] for key in _BAND_KEYS + _NET_BAND_KEYS}
    return EstimatedEnergy(
        **bands,
        wall_s=record["wall_s"],
        provenance=Provenance(record["provenance"]),
        scopes=scopes,
        method=record["method"],
        inputs=dict(record["inputs"]),
        windows=windows,
        reason=record["reason"],
        net_reason=record["net_reason"],
        notes=tuple(record["notes"]),
    )


def _verified(record: Mapping[str, Any], windows: Sequence[CounterWindow], scopes: tuple[Scope, ...]) -> MeasuredEnergy:
    """A measured record, every number of which has been recomputed."""
    if not windows:
        raise EnergyError("the raw counter log is absent; nothing supports these joules")
    if _digest(record["windows"]) != record["log_sha256"]:
        raise EnergyError("the raw counter log has been edited: it does not match its digest")
    wall_s = record["wall_s"]
    result = measured_from(windows, meter=record["meter"], notes=tuple(record["notes"]), wall_s=wall_s)
    claims = {
        "energy_gross_j": result.energy_gross_j,
        "energy_uncertainty_j": result.energy_uncertainty_j,
        "energy_net_j": result.energy_net_j,
    }
    for key, recomputed in claims.items():
        if not _agree(record[key], recomputed):
            raise EnergyError(f"{key} says {record[key]}, but the raw log gives {recomputed}")
    if record["provenance"] != result.provenance.value or scopes != result.scopes:
        raise EnergyError("provenance or scope differ from those of the domains in the log")
    lengths = [window.wall_s for window in windows]
    # Parts of one machine share their time, so a sum lies between its longest window and all of them in a row.
    if not max(lengths) * (1 - 1e-9) <= wall_s <= sum(lengths) * (1 + 1e-9):
        raise EnergyError(f"wall_s says {wall_s}, but the raw log spans {max(lengths)} to {sum(lengths)} s")
    for log in (log for window in windows for log in window.logs):
        counter.total(log)
    return result


def _agree(claimed: float | None, recomputed: float | None) -> bool:
    if claimed is None or recomputed is None:
        return claimed is recomputed
    return math.isclose(claimed, recomputed, rel_tol=1e-9)


def _digest(windows: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(list(windows), sort_keys=True).encode()).hexdigest()


def _window_to_json(window: CounterWindow) -> Json:
    return {
        "boot_id": window.boot_id,
        "logs": [_log_to_json(log) for log in window.logs],
        "idle_before": [_log_to_json(log) for log in window.idle_before],
        "idle_after": [_log_to_json(log) for log in window.idle_after],
    }


def _window_from_json(window: Mapping[str, Any]) -> CounterWindow:
    return CounterWindow(
        logs=tuple(_log_from_json(log) for log in window["logs"]),
        idle_before=tuple(_log_from_json(log) for log in window["idle_before"]),
        idle_after=tuple(_log_from_json(log) for log in window["idle_after"]),
        boot_id=window["boot_id"],
    )


def _log_to_json(log: DomainLog) -> Json:
    domain = log.domain
    return {
        "domain": {
            "id": domain.id,
            "scope": domain.scope.value,
            "provenance": domain.provenance.value,
            "quantity": domain.quantity.value,
            "unit": str(domain.unit),
            "period_s": domain.period_s,
            "ceiling_w": domain.ceiling_w,
            "modulus": domain.modulus,
            "overlaps": list(domain.overlaps),
            "checks": domain.checks,
        },
        "samples": [[t_ns, raw] for t_ns, raw in log.samples],
    }


def _log_from_json(log: Mapping[str, Any]) -> DomainLog:
    entry = log["domain"]
    domain = Domain(
        id=entry["id"],
        scope=Scope(entry["scope"]),
        provenance=Provenance(entry["provenance"]),
        quantity=Quantity(entry["quantity"]),
        unit=Fraction(entry["unit"]),
        period_s=entry["period_s"],
        ceiling_w=entry["ceiling_w"],
        modulus=entry["modulus"],
        overlaps=tuple(entry["overlaps"]),
        checks=entry["checks"],
    )
    for t_ns, raw in log["samples"]:
        if not (type(t_ns) is int and type(raw) is int):
            raise EnergyError(f"the raw log of {domain.id} holds {t_ns!r}, {raw!r}; raw samples are integers")
    return DomainLog(domain, tuple((t_ns, raw) for t_ns, raw in log["samples"]))
