"""Training in two processes: the same curve as in one, one voice, one writer, and nothing left afterwards."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from stage_shelf import TRAINING, Shelf, make_context, stage_config

from compressor.checkpoints.store import Checkpoint
from compressor.errors import StageError, UserError
from compressor.schema.events import Event, Note, Progress
from compressor.spec.sources import ModelSource, TokenizerSource
from compressor.stages import job
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here, run_stage
from compressor.stages.source import make_source

NO_DROPOUT = {
    "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
"""Processes draw their dropout apart, so curves can only agree without it."""
SHORT = {**TRAINING, "epochs": 1}
# Embeddings, hidden states through projections, and a head that nothing teaches: gradients that some weights lack.
LAYERS = {"stage": "distill", "teacher": "finetune", "preset": "tinybert"}


@pytest.fixture(scope="module")
def narrow(bert: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("narrow")
    teacher = bert.get("finetune")
    source = ModelSource(
        task="sequence-classification", config=NO_DROPOUT, labels=teacher.content.labels,
        tokenizer=TokenizerSource(path=str(teacher.path)),
    )  # fmt: skip
    return make_source(source, folder / "out", make_context(bert.task, bert.data, folder / "work"))


def train(
    bert: Shelf, source: Checkpoint, folder: Path, settings: dict[str, Any], *, runner: Any, emit: Any = None
) -> Checkpoint:
    config = stage_config("student", settings)
    ctx = make_context(bert.task, bert.data, folder / "work", emit=emit or (lambda event: None))
    teacher = bert.get("finetune") if settings["stage"] == "distill" else None
    made: Checkpoint = runner(config, StageInputs(source, teacher), folder / "out", ctx)
    return made


def losses(checkpoint: Checkpoint) -> list[float]:
    return [point["loss"] for point in checkpoint.record.realised["history"] if "loss" in point]


def test_two_processes_train_as_one_does(bert: Shelf, narrow: Checkpoint, tmp_path: Path, events: list[Event]) -> None:
    alone = train(bert, narrow, tmp_path / "one", {**LAYERS, "training": SHORT}, runner=run_here)
    shared = {**LAYERS, "training": {**SHORT, "processes": 2}}
    together = train(bert, narrow, tmp_path / "two", shared, runner=run_stage, emit=events.append)
    assert (alone.record.realised["processes"], together.record.realised["processes"]) == (1, 2)
    assert losses(together) == pytest.approx(losses(alone), rel=2e-3)
    assert together.record.realised["validation"]["rows"] == 48
    steps = [event.done for event in events if isinstance(event, Progress) and event.task == "train"]
    assert steps == list(range(1, 13))
    assert sum(isinstance(event, Note) and "teaches the task's head" in event.text for event in events) == 1
    asked = [event for event in events if isinstance(event, Progress) and event.task == "teacher outputs"]
    assert asked[-1].done == 96 and len(asked) == 3
    assert not training_processes()


def training_processes() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if "compressor.stages.child" in one.cmdline()]


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_to_the_same_end(
    bert: Shelf, narrow: Checkpoint, tmp_path: Path, events: list[Event]
) -> None:
    settings = {"stage": "finetune", "training": {**TRAINING, "processes": 2, "save_every_steps": 5}}
    straight = train(bert, narrow, tmp_path / "straight", settings, runner=run_stage)

    def kill_one(event: Event) -> None:
        if isinstance(event, Progress) and event.task == "train" and event.done == 8:
            training_processes()[-1].kill()  # a worker: children come after their parents

    with pytest.raises((StageError, RuntimeError), match="training process"):
        train(bert, narrow, tmp_path / "resumed", settings, runner=run_stage, emit=kill_one)
    assert not training_processes()
    resumed = train(bert, narrow, tmp_path / "resumed", settings, runner=run_stage, emit=events.append)
    assert Note("student", "resumed after step 5") in events
    assert resumed.digest == straight.digest


ACCELERATE = """compute_environment: LOCAL_MACHINE
distributed_type: {kind}
machine_rank: 0
main_process_port: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
use_cpu: false
"""


@pytest.mark.slow
def test_an_accelerate_config_says_how_many_there_are(bert: Shelf, narrow: Checkpoint, tmp_path: Path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text(ACCELERATE.format(kind="MULTI_GPU"))  # its launcher; where there is no GPU, they meet over gloo
    settings = {"stage": "finetune", "training": {**SHORT, "config": str(config)}}
    made = train(bert, narrow, tmp_path / "run", settings, runner=run_stage)
    assert made.record.realised["processes"] == 2
    assert not training_processes()


SHARDED = """fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: BertLayer
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_reshard_after_forward: true
  fsdp_offload_params: false
  fsdp_cpu_ram_efficient_loading: false
  fsdp_sync_module_states: false
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [LAYERS, {"stage": "finetune"}], ids=["distill", "finetune"])
def test_two_processes_that_share_the_weights_train_as_one_does(
    stage: dict[str, Any],
    bert: Shelf,
    narrow: Checkpoint,
    tmp_path: Path,
    events: list[Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = train(bert, narrow, tmp_path / "one", {**stage, "training": SHORT}, runner=run_here)
    config = tmp_path / "accelerate.yaml"
    config.write_text(ACCELERATE.format(kind="FSDP") + SHARDED)
    # No GPU here: the launcher's own, but a child that meets over gloo and says that it has GPUs.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    child = str(Path(__file__).with_name("sharded_child.py"))
    monkeypatch.setattr(job, "command_of", lambda config, path, device: [*launcher, child, str(path)])
    settings = {**stage, "training": {**SHORT, "config": str(config)}}
    shared = train(bert, narrow, tmp_path / "two", settings, runner=run_stage)
    assert (shared.record.realised["processes"], shared.record.realised["weights_shared_out"]) == (2, True)
    assert losses(shared) == pytest.approx(losses(alone), rel=2e-3)
    made, wanted, start = (load_file(one.path / "model.safetensors") for one in (shared, alone, narrow))
    assert made.keys() == wanted.keys()
    apart, moved = (
        torch.cat([(one[name] - wanted[name]).flatten() for name in wanted]).norm() for one in (made, start)
    )
    assert apart < 0.01 * moved
    shutil.rmtree(shared.path)
    again = train(bert, narrow, tmp_path / "two", settings, runner=run_stage, emit=events.append)
    assert Note("student", "resumed after step 12") in events
    assert again.digest == shared.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file: "),
        (
            ACCELERATE.format(kind="MULTI_CPU"),
            "Accelerate starts 2 processes on CPUs only through mpirun, and one with",
        ),
        (
            ACCELERATE.format(kind="FSDP"),
            "Accelerate shares weights out among GPUs only; on CPUs each process would have all of them",
        ),
    ],
)
def test_a_config_that_accelerate_would_not_follow_is_refused(
    text: str | None, message: str, bert: Shelf, narrow: Checkpoint, tmp_path: Path
) -> None:
    config = tmp_path / "accelerate.yaml"
    if text is not None:
        config.write_text(text)
    settings = {"stage": "finetune", "training": {**SHORT, "config": str(config)}}
    with pytest.raises(UserError, match=message):
        train(bert, narrow, tmp_path / "run", settings, runner=run_stage)
