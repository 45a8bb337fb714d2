"""Where the model and the data come from."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from compressor.spec.base import Part, PositiveInt
from compressor.spec.tasks import TaskName


class TokenizerSource(Part):
    """A tokenizer for a model built from a config: an existing one, or one trained on the training split."""

    path: str | None = None
    """Folder with tokenizer files."""
    vocab_size: PositiveInt | None = None
    """Train a byte-level BPE (decoders) or WordPiece (encoders) tokenizer of this size on `data.train`."""

    @model_validator(mode="after")
    def _one_way(self) -> TokenizerSource:
        if (self.path is None) == (self.vocab_size is None):
            raise ValueError("give exactly one of: path, vocab_size")
        return self


class Pooling(Part):
    """How an embedder makes one vector of a text's token vectors; for folders without `modules.json`."""

    mode: Literal["mean", "cls", "max", "lasttoken"] = "mean"
    normalise: bool = True
    """To length 1, so that the dot product is the cosine."""


class ModelSource(Part):
    """The pretrained model: a folder, a hub repository, or random weights from a config."""

    task: TaskName
    path: str | None = None
    """Folder with config.json and weights; a relative path starts at the working directory."""
    hub: str | None = None
    """Hub repository, `organisation/name`."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository; the commit found is recorded."""
    config: dict[str, Any] | None = None
    """A Hugging Face config (with `model_type`) for random weights drawn from the pipeline's seed."""
    tokenizer: TokenizerSource | None = None
    """Only with `config`."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in the order of their ids."""
    pooling: Pooling | None = None
    """Of an embedder whose folder has no `modules.json`."""
    name: str | None = None
    """How reports and cards call this model; say here what was done to its weights before us."""
    licence: str | None = None
    """Licence of the weights, passed on to cards."""
    how_to_get: str | None = None
    """What to run when the folder is missing; printed in the error, never executed."""

    @model_validator(mode="after")
    def _one_way(self) -> ModelSource:
        if sum(value is not None for value in (self.path, self.hub, self.config)) != 1:
            raise ValueError("give exactly one of: path, hub, config")
        if (self.tokenizer is None) != (self.config is None):
            raise ValueError("`tokenizer` goes with `config`: a folder or a hub repository brings its own")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` goes with `hub`")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, such as bert or gpt2")
        return self


class DataSource(Part):
    """Rows from a file or from a hub data set, read through `datasets`."""

    path: str | None = None
    """CSV, TSV, JSONL, Parquet or plain text; a relative path starts at the working directory."""
    hub: str | None = None
    """Hub data set, such as `nyu-mll/glue`."""
    subset: str | None = None
    """Configuration of the hub data set, such as `sst2`."""
    split: str | None = None
    """Split of the hub data set, such as `train` or `validation[:1000]`."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "text"] | None = None
    """Only where the file's ending does not say it."""
    rows: PositiveInt | None = None
    """Use the first rows only."""
    how_to_get: str | None = None
    """What to run when the file is missing; printed in the error, never executed."""

    @model_validator(mode="after")
    def _one_way(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of: path, hub")
        if self.hub is None and (self.subset or self.split):
            raise ValueError("`subset` and `split` go with `hub`")
        return self


GlueName = Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
_GLUE_COLUMNS: dict[str, dict[str, str]] = {
    "cola": {"text": "sentence"},
    "sst2": {"text": "sentence"},
    "qqp": {"text": "question1", "text_pair": "question2"},
    "mnli": {"text": "premise", "text_pair": "hypothesis"},
    "qnli": {"text": "question", "text_pair": "sentence"},
}
_GLUE_PAIR = {"text": "sentence1", "text_pair": "sentence2"}


def _test_or_glue(schema: dict[str, Any]) -> None:
    schema.pop("required", None)
    schema["anyOf"] = [{"required": ["test"]}, {"required": ["glue"]}]


class Data(Part):
    """The splits. Stages see train, validation and calibration; only measurement opens test."""

    model_config = ConfigDict(json_schema_extra=_test_or_glue)

    glue: GlueName | None = None
    """A task of GLUE (`nyu-mll/glue` on the hub) in place of the splits. The labels of its test split are secret, so
    its validation split is `test` here, and `validation` is the last twentieth of its training split."""
    train: DataSource | None = None
    validation: DataSource | None = None
    test: DataSource
    calibration: DataSource | None = None
    """Rows that fix pruning statistics and quantisation ranges; taken from `train` where absent."""
    calibration_rows: PositiveInt = 256
    """How many rows (encoders) or windows (decoders) calibration uses; drawn from the seed."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Task column -> column in the files, where they differ: `{text: sentence}`."""
    prompts: dict[Literal["text", "text_pair"], str] | None = None
    """Of an embedder, what is put before each text of a column, in every split: the name of one of the model's prompts
    (`{text: query, text_pair: document}`), or the text itself. Where absent, the model's default prompt goes before
    every text, if it has one; `{}` puts none."""
    max_tokens: PositiveInt = 128
    """Longest row (encoders) or window (decoders) in training and calibration, in tokens."""
    leaks: Literal["refuse", "drop"] = "refuse"
    """Rows whose text stands in a later split too: an error, or left out of the earlier one (GLUE has some)."""

    @model_validator(mode="before")
    @classmethod
    def _expand_glue(cls, values: Any) -> Any:
        name = values.get("glue") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in get_args(GlueName):
            return values
        of_hub = {"hub": "nyu-mll/glue", "subset": name}
        test = "validation_matched" if name == "mnli" else "validation"
        splits = {"train": "train[:95%]", "validation": "train[95%:]", "test": test}
        expanded: dict[str, Any] = {split: {**of_hub, "split": part} for split, part in splits.items()}
        expanded |= {"columns": _GLUE_COLUMNS.get(name, _GLUE_PAIR), "leaks": "drop"}
        return expanded | values
