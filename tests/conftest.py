"""What every test may rely on: no network, small real texts, tiny checkpoints, a plain skip for what is not fetched."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SLICE = REPOSITORY / "eval" / "data"
SPLITS = ("train", "validation", "test")


def pytest_configure() -> None:
    """Cut the network, here and in every child, before any library has looked for it."""
    blocker = REPOSITORY / "tests" / "no_network"
    paths = [str(blocker), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(
        PYTHONPATH=os.pathsep.join(paths),
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
    )
    # For clients written in other languages: they obey a proxy, and nothing listens at this one.
    nowhere, here = "http://127.0.0.1:9", "localhost,127.0.0.1,::1"
    for name, value in (("http_proxy", nowhere), ("https_proxy", nowhere), ("all_proxy", nowhere), ("no_proxy", here)):
        os.environ[name] = os.environ[name.upper()] = value
    spec = importlib.util.spec_from_file_location("refuse_network", blocker / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give torch back the threads it had: sums depend on their number in the last bit, and training on every bit."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture(scope="session")
def cached() -> Callable[[str], Path]:
    """`cached("models/all-MiniLM-L6-v2")`: that folder of .cache, or a skip that says how to fetch it."""

    def find(name: str) -> Path:
        path = REPOSITORY / ".cache" / name
        if not (path / "SOURCE.json").is_file():
            pytest.skip(f".cache/{name} has not been fetched: make fetch")
        return path

    return find


@pytest.fixture(scope="session")
def sotu_text() -> dict[str, Path]:
    """The committed language-model texts by split; one address to a line."""
    return {split: SLICE / "sotu_tiny" / f"{split}.txt" for split in SPLITS}


@pytest.fixture(scope="session")
def era_files() -> dict[str, Path]:
    """The committed JSONL files of the era task by split: `text`, and `label` 0, 1 or 2."""
    return {split: SLICE / "era_tiny" / f"{split}.jsonl" for split in SPLITS}


@pytest.fixture
def era_rows(era_files: dict[str, Path]) -> dict[str, list[dict[str, object]]]:
    """The rows of the era task by split: 600, 150 and 300, a third of each era, the eras in turn."""
    return {
        split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for split, path in era_files.items()
    }


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory, sotu_text: dict[str, Path]) -> Path:
    """BertForSequenceClassification, random: 4 layers, 32 wide, 4 heads, FFN 64, three labels, 512 word pieces."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train([str(sotu_text["train"])], vocab_size=512, show_progress=False)
    tokenizer = BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True, model_max_length=128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class SmallDisk:
    """A file system of its own, and a file on it that leaves as much room as a test wants.

    Attributes:
        path: where it is mounted.
    """

    SIZE = 8 << 20

    def __init__(self, path: Path) -> None:
        self.path = path

    def leave(self, n_bytes: int) -> None:
        """Leave so many bytes free, rounded to pages."""
        ballast = self.path / "ballast"
        ballast.unlink(missing_ok=True)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.path).free - n_bytes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 8 MB that really fills."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SmallDisk.SIZE}", "small-disk", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount the small disk that this test fills")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # a mapped file may still be open


def save_byte_bpe(folder: Path, text: Path) -> tuple[int, int]:
    """Train a byte-level BPE of 512 tokens, save it as a fast tokenizer; returns (vocabulary size, end-of-text id)."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    trained = ByteLevelBPETokenizer()
    trained.train([str(text)], vocab_size=512, special_tokens=[end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer), int(tokenizer.eos_token_id)


@pytest.fixture(scope="session")
def tiny_gpt2_dir(tmp_path_factory: pytest.TempPathFactory, sotu_text: dict[str, Path]) -> Path:
    """GPT2LMHeadModel, random: 4 layers, 32 wide, 4 heads, FFN 128, 512 byte-level tokens, 128 positions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    n_tokens, end_id = save_byte_bpe(folder, sotu_text["train"])
    config = GPT2Config(
        vocab_size=n_tokens,
        n_positions=128,
        n_embd=32,
        n_layer=4,
        n_head=4,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory, sotu_text: dict[str, Path]) -> Path:
    """LlamaForCausalLM, random, tied: 4 layers, 32 wide, 4 heads on 2 KV heads, FFN 64, 512 tokens, 128 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    n_tokens, end_id = save_byte_bpe(folder, sotu_text["train"])
    config = LlamaConfig(
        vocab_size=n_tokens,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
