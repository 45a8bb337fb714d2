"""Stand-ins for tools that the quick tests do not install: what our side calls, kept in memory.

They show that our side still works at all. That the tools take what it gives them is shown by the tests which run with
the tools themselves; there each stand-in is also held to the real signatures (`held_to`).
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def install(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> ModuleType:
    """A module of this name with these values, until the test ends; parents must be there already."""
    module = ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
    return module


def held_to(stand_in: type, real: type) -> None:
    """Fail where a call that the stand-in takes would be refused by the real one."""
    for name, function in inspect.getmembers(stand_in, inspect.isfunction):
        if name.startswith("_") and name != "__init__":
            continue
        taken = inspect.signature(getattr(real, name)).parameters
        if any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            continue
        assert set(inspect.signature(function).parameters) <= set(taken), f"{real.__name__}.{name}"


class MlflowClient:
    """What `MlflowTracker` calls of `mlflow.MlflowClient`."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        self._uri = tracking_uri
        self._experiments: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._artifacts: list[str] = []
        self._models: dict[str, SimpleNamespace] = {}
        self._status = "RUNNING"

    def get_experiment_by_name(self, name: str) -> Any:
        found = self._experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        assert name not in self._experiments
        return self._experiments.setdefault(name, str(len(self._experiments)))

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        assert experiment_id in self._experiments.values() and run_name
        return SimpleNamespace(info=SimpleNamespace(run_id="run"))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._tags[key] = value

    def log_artifact(self, run_id: str, local_path: str) -> None:
        self._artifacts.append(Path(local_path).name)

    def create_logged_model(
        self, experiment_id: str, name: str, source_run_id: str, params: dict[str, str], tags: dict[str, str]
    ) -> Any:
        model = SimpleNamespace(model_id=f"m-{len(self._models)}", name=name, params=params, tags=tags)
        model.metrics, model.files, model.status = {}, [], "PENDING"
        self._models[model.model_id] = model
        return model

    def log_metric(self, run_id: str, key: str, value: float, model_id: str) -> None:
        self._models[model_id].metrics[key] = value

    def log_model_artifacts(self, model_id: str, local_dir: str) -> None:
        folder = Path(local_dir)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self._models[model_id].files = [path.relative_to(folder).as_posix() for path in files]

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self._models[model_id].status = status

    def set_terminated(self, run_id: str) -> None:
        self._status = "FINISHED"


class WandbArtifact:
    """What `WandbTracker` calls of `wandb.Artifact`."""

    def __init__(self, name: str, type: str, metadata: dict[str, Any]) -> None:
        self.name, self.type, self.metadata = name, type, metadata
        self.files: list[str] = []

    def add_file(self, local_path: str, name: str) -> None:
        assert Path(local_path).is_file()
        self.files.append(name)


class WandbRun:
    """What `WandbTracker` calls of a run of wandb, and what it was begun with."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.metrics: dict[str, float] = {}
        self.artifacts: list[WandbArtifact] = []
        self.saved: list[str] = []
        self.is_finished = False

    def log(self, data: dict[str, float]) -> None:
        self.metrics |= data

    def log_artifact(self, artifact_or_path: WandbArtifact) -> None:
        self.artifacts.append(artifact_or_path)

    def save(self, glob_str: str, base_path: str, policy: str) -> None:
        self.saved.append(Path(glob_str).relative_to(base_path).as_posix())

    def finish(self) -> None:
        self.is_finished = True


class Harness:
    """What `CompressorLM` inherits from lm-evaluation-harness's `TemplateLM`."""

    def __init__(self) -> None:
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


def rolling_windows(
    token_list: Sequence[int], prefix_token: int, max_seq_len: int, context_len: int
) -> list[tuple[list[int], list[int]]]:
    """Windows of at most `max_seq_len` tokens, the last one filled up with tokens seen before, as the harness cuts."""
    assert context_len == 1
    tokens, pairs, start = list(token_list), [], 0
    while start < len(tokens):
        end = min(start + max_seq_len, len(tokens))
        before = [prefix_token, *tokens][max(0, end - max_seq_len) : end]
        pairs.append((before, tokens[start:end]))
        start = end
    return pairs


def disjoint(pair: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """(context, continuation) without what stands in both."""
    context, continuation = pair
    return context[: len(context) - (len(continuation) - 1)], continuation


def install_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lm_eval` as far as `compressor.integrations.lm_eval` imports it."""

    def register_model(name: str) -> Callable[[type], type]:
        assert name == "compressor"
        return lambda one: one

    install(monkeypatch, "lm_eval")
    install(monkeypatch, "lm_eval.utils", get_rolling_token_windows=rolling_windows, make_disjoint_window=disjoint)
    install(monkeypatch, "lm_eval.api")
    install(monkeypatch, "lm_eval.api.model", TemplateLM=Harness)
    install(monkeypatch, "lm_eval.api.registry", register_model=register_model)
    monkeypatch.delitem(sys.modules, "compressor.integrations.lm_eval", raising=False)


def install_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prefect` whose flows and tasks are the functions themselves."""

    def plain(function: Any = None, **_: Any) -> Any:
        return function if callable(function) else lambda one: one

    install(monkeypatch, "prefect", flow=plain, task=plain, get_run_logger=lambda: logging.getLogger("prefect"))
