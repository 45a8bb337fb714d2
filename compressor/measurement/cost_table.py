"""Cost tables: what each sublayer costs on this device, measured, kept on disk, and added up.

A row is a graph that was timed: a few equal sublayers of one kind and size, or the same frame without them. What one
sublayer costs is the difference divided by their number, and sizes in between are interpolated (Kwon et al., arXiv
2204.09656, fit their latencies piecewise too). Rows are timed side by side in rounds, and what all rows of a round have
in common is taken off. The file holds one sample a line and grows round by round, so an interruption loses the round in
work and no more.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from compressor.checkpoints.files import canonical_json, digest_json
from compressor.errors import CheckpointError, UserError
from compressor.measurement.device import Device
from compressor.measurement.statistics import mean_interval
from compressor.methods.structure import KINDS
from compressor.spec.budgets import Shipped

FORMAT = 1
RowName: TypeAlias = tuple[str, int, "Precision"]
RowKey: TypeAlias = tuple[str, int, str, str]
Precision = Literal["fp32", "int8"]
Quantity = Literal["cpu_s", "latency_s", "energy_j", "size_bytes"]
"""What can be read from a row; seconds and joules are per call, bytes are those of the file."""
Timing: TypeAlias = tuple[float, float, float]
"""Median and its 95 % interval."""

FRAME, EMPTY = "frame", "empty"
"""Kinds of rows besides the sublayers: a small graph without sublayers, and the whole model without them."""


@dataclass(frozen=True)
class CallShape:
    """One shape of call, and its share of the work.

    Attributes:
        phase: `forward`, `prefill` or `decode`.
        batch: rows.
        n_new: tokens of each row that the call reads, padding included.
        n_past: tokens of each row in the key/value cache.
        real_tokens: tokens of all rows that are not padding: what a cost per token is divided by.
        weight: share of this phase's tokens in the mix of workloads; shares add up to 1.
    """

    phase: Literal["forward", "prefill", "decode"]
    batch: int
    n_new: int
    n_past: int
    real_tokens: float
    weight: float

    @property
    def key(self) -> str:
        """What makes it a row of its own: neither the weight nor what is padding changes the call."""
        return f"b{self.batch}-t{self.n_new}-p{self.n_past}"


@dataclass(frozen=True)
class Turn:
    """One graph in one round and one shape of call; seconds and joules of one call."""

    cpu_s: float
    latency_s: float
    n_calls: int
    energy_j: float | None
    energy_kind: str


@dataclass(frozen=True)
class Sample:
    """One turn of a row's graph, as a line of the file holds it; rounds count up through all sessions."""

    kind: str
    size: int
    precision: Precision
    call: str
    round: int
    n_sublayers: int
    size_bytes: int
    cpu_s: float
    latency_s: float
    n_calls: int
    energy_j: float | None
    energy_kind: str

    @property
    def key(self) -> RowKey:
        """Of its row."""
        return self.kind, self.size, self.precision, self.call


@dataclass(frozen=True)
class Row:
    """One graph, timed in one shape of call.

    Attributes:
        kind: `attention`, `ffn`, `frame` or `empty`.
        size: query heads or FFN neurons of each sublayer; 0 for the last two kinds.
        precision: of the matrix products.
        call: key of the call's shape.
        n_sublayers: how many of them the graph holds.
        cpu_s, latency_s: of one call of the graph, over the rounds.
        n_samples, n_calls: rounds, and calls in all of them.
        size_bytes: of the file.
        energy_j: joules of one call, measured or estimated; None where neither was to be had.
        energy_kind: `measured`, `estimated`, or why there is none.
    """

    kind: str
    size: int
    precision: Precision
    call: str
    n_sublayers: int
    cpu_s: Timing
    latency_s: Timing
    n_samples: int
    n_calls: int
    size_bytes: int
    energy_j: float | None
    energy_kind: str

    def value(self, quantity: Quantity) -> float:
        """The middle of a quantity.

        Raises:
            UserError: joules that are not known.
        """
        if quantity == "energy_j":
            if self.energy_j is None:
                raise UserError(
                    f"this table has no joules: {self.energy_kind}", hint="set the budget on cpu_s_per_token"
                )
            return self.energy_j
        if quantity == "size_bytes":
            return float(self.size_bytes)
        return self.cpu_s[0] if quantity == "cpu_s" else self.latency_s[0]


@dataclass(frozen=True)
class Fit:
    """Whether sums over the table predict whole models: E = a + b x sum, on random structures.

    Attributes:
        intercept, slopes: of the fit; one slope (`all`), or one for each kind of sublayer.
        mape: mean absolute relative error of the fit on the models it was made from.
        kendall_tau: rank correlation of predicted and measured costs.
        n_models: random whole models.
        predicted, measured: CPU-seconds a token of each.
    """

    intercept: float
    slopes: Mapping[str, float]
    mape: float
    kendall_tau: float
    n_models: int
    predicted: tuple[float, ...]
    measured: tuple[float, ...]


@dataclass
class CostTable:
    """Rows of one model shape on one device."""

    device: Device
    model: dict[str, Any]
    samples: dict[RowKey, list[Sample]] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    comparisons: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: Path | None = None
    _rows: dict[RowKey, Row] | None = field(default=None, repr=False)
    _first_round: int = 0

    def begin_session(self) -> None:
        """Rounds that follow are a session of their own: they share nothing with earlier ones."""
        rounds = [sample.round for samples in self.samples.values() for sample in samples]
        self._first_round = max(rounds, default=-1) + 1

    def add(self, row: RowName, call: CallShape, number: int, turn: Turn, *, n_sublayers: int, size_bytes: int) -> None:
        """Take in one turn of a row in a round of this session, and write it to the file at once."""
        kind, size, precision = row
        sample = Sample(
            kind, size, precision, call.key, self._first_round + number, n_sublayers, size_bytes, **asdict(turn)
        )
        self.samples.setdefault(sample.key, []).append(sample)
        self._rows = None
        self._append({"sample": asdict(sample)})

    def n_samples(self, row: RowName, call: CallShape) -> int:
        """Rounds in which a row was timed."""
        return len(self.samples.get((*row, call.key), ()))

    @property
    def rows(self) -> dict[RowKey, Row]:
        """The rows that the samples make."""
        if self._rows is None:
            self._rows = rows_of(self.samples)
        return self._rows

    def add_fit(self, name: str, fit: Fit) -> None:
        """Keep what a check of additivity found."""
        self.fits[name] = fit
        self._append({"fit": {"name": name, **asdict(fit)}})

    def add_comparison(self, key: str, found: dict[str, Any]) -> None:
        """Keep what a whole model measured against the dense one."""
        self.comparisons[key] = found
        self._append({"comparison": {"key": key, **found}})

    def sizes(self, kind: str, precision: Precision, call: CallShape) -> list[int]:
        """Measured sizes of a kind of sublayer, increasing."""
        return sorted(size for k, size, p, c in self.rows if (k, p, c) == (kind, precision, call.key))

    def sublayer(self, kind: str, size: int, precision: Precision, call: CallShape, quantity: Quantity) -> float:
        """Cost of one sublayer in one call: interpolated between the measured sizes, 0 where it is gone.

        Raises:
            UserError: a size beyond those measured, or rows that are missing.
        """
        if size == 0:
            return 0.0
        sizes = self.sizes(kind, precision, call)
        frame = self._row(FRAME, 0, precision, call).value(quantity)
        if not sizes or size > sizes[-1]:
            raise UserError(f"the cost table has no {kind} of size {size}", where=str(self.path))
        rows = [self.rows[kind, at, precision, call.key] for at in sizes]
        costs = [(row.value(quantity) - frame) / row.n_sublayers for row in rows]
        return float(np.interp(size, [0, *sizes], [0.0, *costs]))

    def empty(self, precision: Precision, call: CallShape, quantity: Quantity) -> float:
        """Cost of the model without any sublayer: embeddings, norms that stay, head, dispatch."""
        return self._row(EMPTY, 0, precision, call).value(quantity)

    def energy_kinds(self) -> set[str]:
        """Whether joules are measured, estimated, or absent and why."""
        return {row.energy_kind for row in self.rows.values()}

    def to_json(self) -> dict[str, Any]:
        """The whole table as one JSON object, for records of an evaluation."""
        rows = [asdict(row) for row in self.rows.values()]
        return {"device": asdict(self.device), "model": self.model, "rows": rows, "fits": _fits(self.fits)}

    def _row(self, kind: str, size: int, precision: Precision, call: CallShape) -> Row:
        try:
            return self.rows[kind, size, precision, call.key]
        except KeyError:
            raise UserError(
                f"the cost table lacks the row {kind} {size} {precision} {call.key}",
                where=str(self.path),
                hint="measure the table again: it was interrupted, or made for other workloads",
            ) from None

    def _append(self, entry: dict[str, Any]) -> None:
        if self.path is None:
            return
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if is_new:
                head = {"format": FORMAT, "device": asdict(self.device), "model": self.model}
                file.write(json.dumps(head) + "\n")
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def rows_of(samples: Mapping[RowKey, Sequence[Sample]]) -> dict[RowKey, Row]:
    """Rows from samples: what all rows of a round have in common, the machine's speed at that time, is taken off.

    Rows, rounds: x = row x round x noise, all positive, so logarithms add up; the middle of a row is the exponential of
    its mean, with Student's interval.
    """
    drift = {name: _round_factors(samples, name) for name in ("cpu_s", "latency_s")}
    rows = {}
    for key, taken in samples.items():
        timings: dict[str, Timing] = {}
        for name in ("cpu_s", "latency_s"):
            logs = [math.log(getattr(one, name)) - drift[name][one.call, one.round] for one in taken]
            bounds = mean_interval(logs)
            middle = float(np.exp(np.mean(logs)))
            timings[name] = (middle, *((math.exp(bounds[0]), math.exp(bounds[1])) if bounds else (middle, middle)))
        first, joules = taken[0], [one.energy_j for one in taken]
        known = [value for value in joules if value is not None]
        # joules per CPU-second hardly drift, and the rounds' factors are those of CPU-seconds
        per_cpu_s = [value / one.cpu_s for value, one in zip(joules, taken, strict=True) if value is not None]
        rows[key] = Row(
            kind=first.kind,
            size=first.size,
            precision=first.precision,
            call=first.call,
            n_sublayers=first.n_sublayers,
            cpu_s=timings["cpu_s"],
            latency_s=timings["latency_s"],
            n_samples=len(taken),
            n_calls=sum(one.n_calls for one in taken),
            size_bytes=first.size_bytes,
            energy_j=float(np.median(per_cpu_s)) * timings["cpu_s"][0] if len(known) == len(taken) else None,
            energy_kind=next((one.energy_kind for one in taken if one.energy_j is None), first.energy_kind),
        )
    return rows


def _round_factors(samples: Mapping[RowKey, Sequence[Sample]], name: str) -> dict[tuple[str, int], float]:
    """(call, round) -> mean log of how much slower than usual all of its rows were."""
    above: dict[tuple[str, int], list[float]] = {}
    for taken in samples.values():
        usual = float(np.mean([math.log(getattr(one, name)) for one in taken]))
        for one in taken:
            above.setdefault((one.call, one.round), []).append(math.log(getattr(one, name)) - usual)
    return {key: float(np.mean(values)) for key, values in above.items()}


def _fits(fits: Mapping[str, Fit]) -> dict[str, Any]:
    return {name: asdict(fit) for name, fit in sorted(fits.items())}


def open_table(path: Path, device: Device, model: Mapping[str, Any], *, accept_other_device: bool = False) -> CostTable:
    """Read a table, or begin one where there is no file; a line that was cut short by an interruption is left out.

    Raises:
        UserError: a table of another device that was not asked for in so many words, or of another model.
        CheckpointError: not a cost table.
    """
    if not path.exists():
        return CostTable(device, dict(model), path=path)
    table = read_table(path)
    differences = device.differences(table.device)
    if differences and not accept_other_device:
        raise UserError(
            f"the cost table is of another device: {'; '.join(differences)}",
            where=str(path),
            hint="measure one here (leave the table out), or accept it: accept_other_device: true, "
            "--accept-other-device",
        )
    if table.model != dict(model):
        wrong = [name for name in model if table.model.get(name) != model[name]]
        raise UserError(
            "the cost table is of another model: "
            + ", ".join(f"{name} {table.model.get(name)} there, {model[name]} here" for name in wrong),
            where=str(path),
            hint="leave the table out, and one is measured",
        )
    return table


def read_table(path: Path) -> CostTable:
    """The table in a file, whatever device it is of.

    Raises:
        CheckpointError: not a cost table, or a line in its middle cannot be read.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    complete, rest = lines[:-1], lines[-1]
    if rest and complete:  # the last line has no end: the interruption came while it was written
        _cut_to(path, complete)
    try:
        head = json.loads(complete[0])
        table = CostTable(Device(**head["device"]), head["model"], path=path)
        if head["format"] != FORMAT:
            raise CheckpointError(f"a cost table of format {head['format']}; this is {FORMAT}", where=str(path))
        for line in complete[1:]:
            entry = json.loads(line)
            if "sample" in entry:
                sample = Sample(**entry["sample"])
                table.samples.setdefault(sample.key, []).append(sample)
            elif "fit" in entry:
                name = entry["fit"].pop("name")
                table.fits[name] = _fit_of(entry["fit"])
            else:
                key = entry["comparison"].pop("key")
                table.comparisons[key] = entry["comparison"]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"this is no cost table, or a damaged one ({error!r})", where=str(path), hint="delete it and measure again"
        ) from error
    return table


def _cut_to(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _fit_of(value: dict[str, Any]) -> Fit:
    return Fit(**{**value, "predicted": tuple(value["predicted"]), "measured": tuple(value["measured"])})


def tables_folder() -> Path:
    """Where tables of this machine are kept, shared by all runs: `XDG_CACHE_HOME`, or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "joule-compressor" / "cost-tables"


def table_path(folder: Path, device: Device, model: Mapping[str, Any]) -> Path:
    """The file of a device and a model shape."""
    digest = digest_json({"format": FORMAT, "device": asdict(device), "model": dict(model)})
    return folder / f"{model['model_type']}-{digest[:16]}.jsonl"


@dataclass(frozen=True)
class Costs:
    """A table read for one mix of calls and one precision: what the search asks.

    Attributes:
        table: with every row that the calls need.
        calls: the mix; weights add up to 1.
        precision: what will ship; where it is mixed, what no choice changes is INT8.
        fit: corrects sums by what whole models showed; None uses sums as they are.
    """

    table: CostTable
    calls: tuple[CallShape, ...]
    precision: Shipped = "fp32"
    fit: Fit | None = None

    @property
    def rest(self) -> Precision:
        """The precision of what no choice changes, and of a sublayer of which nothing else is said."""
        return "fp32" if self.precision == "fp32" else "int8"

    def sublayer(self, kind: str, size: int, quantity: Quantity, precision: Precision | None = None) -> float:
        """Cost of a sublayer, per token of the mix (seconds of a call for `latency_s`, bytes for `size_bytes`)."""
        used = precision or self.rest
        total = self._mix(quantity, lambda call: self.table.sublayer(kind, size, used, call, quantity))
        return total * self._slope(kind, quantity)

    def dense(self, sizes: Sequence[tuple[int, int]], quantity: Quantity) -> float:
        """Cost of the whole model in fp32: what shares of a budget refer to.

        Args:
            sizes: query heads and neurons of each layer.
        """
        costs = self if self.precision == "fp32" else replace(self, precision="fp32", fit=None)
        parts = [
            costs.sublayer(kind, size, quantity) for layer in sizes for kind, size in zip(KINDS, layer, strict=True)
        ]
        return costs.fixed(quantity) + math.fsum(parts)

    def fixed(self, quantity: Quantity) -> float:
        """What no choice changes, in the same unit."""
        empty = self._mix(quantity, lambda call: self.table.empty(self.rest, call, quantity))
        if self.fit is not None and quantity in ("cpu_s", "energy_j", "latency_s"):
            cpu = self._mix("cpu_s", lambda call: self.table.empty(self.rest, call, "cpu_s"))
            return empty * (self.fit.intercept / cpu)
        return empty

    def digest(self) -> str:
        """Of the rows that this mix needs and of the fit."""
        keys = {call.key for call in self.calls}
        precisions = ("fp32", "int8") if self.precision == "mixed" else (self.precision,)
        rows = [asdict(row) for row in self.table.rows.values() if row.call in keys and row.precision in precisions]
        used = sorted(rows, key=canonical_json)
        fit = None if self.fit is None else asdict(self.fit)
        calls = [asdict(call) for call in self.calls]
        return digest_json({"device": asdict(self.table.device), "rows": used, "fit": fit, "calls": calls})

    def _slope(self, kind: str, quantity: Quantity) -> float:
        if self.fit is None or quantity == "size_bytes":
            return 1.0
        return self.fit.slopes.get(kind, self.fit.slopes.get("all", 1.0))

    def _mix(self, quantity: Quantity, of_call: Any) -> float:
        if quantity == "size_bytes":
            return float(of_call(self.calls[0]))
        per = 1.0 if quantity == "latency_s" else None
        return math.fsum(call.weight * of_call(call) / (per or call.real_tokens) for call in self.calls)
