"""Push to a hub and load from it, over HTTP against a stand-in on this machine; the client in processes of its own.

The client reads its address when it is imported, so each scene is a program; it prints what it saw as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.checkpoints.store import Checkpoint
from compressor.runtime.load import load

sys.path.append(str(Path(__file__).parents[1] / "checkpoints"))
from hub_stand_in import TOKEN, Repository, Stand, stand_in

TEXT = "The people of the United States."


@pytest.fixture
def hub() -> Iterator[Stand]:
    with stand_in() as server:
        yield server


@pytest.fixture
def scene(hub: Stand, tmp_path: Path) -> Any:
    """`scene("program", *arguments)`: what it printed as JSON, with a cache of its own."""

    def play(program: str, *arguments: object, token: str | None = TOKEN, home: str = "home", **settings: str) -> Any:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / home),
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **settings,
        }  # fmt: skip
        if token is not None:
            environment["HF_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + program, *map(str, arguments)],
            env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return play


PREAMBLE = """
import json, sys, time
time.sleep = lambda _: None  # the client tries a busy hub again for half a minute
import compressor
from compressor.errors import CompressorError
def told(go):
    try:
        return go()
    except CompressorError as error:
        return f"{type(error).__name__}: {error}"
"""
PUSH = """
found = told(lambda: compressor.push(sys.argv[1], sys.argv[2], dry_run=len(sys.argv) > 3).to_json())
print(json.dumps(found))
"""
LOAD = """
def go():
    model = compressor.load(sys.argv[1], precision=sys.argv[2] or None, revision=sys.argv[3] or None, threads=1)
    answer = model.predict([sys.argv[4]])[0]
    return {"variant": model.variant and model.variant.id, "commit": model.commit, "answer": answer,
            "files": sorted(str(p.relative_to(model.folder)) for p in model.folder.rglob("*") if p.is_file()),
            "missing": list(model.missing)}
print(json.dumps(told(go)))
"""


def test_push_and_load_in_a_round(scene: Any, hub: Stand, run_dir: Path, bert: Checkpoint) -> None:
    planned = scene(PUSH, run_dir, "org/model", "dry")
    assert planned["commit"] is None and hub.repositories == {}, "a dry run sends nothing"
    assert [one["path"] for one in planned["files"]] == sorted(
        [*bert.content.files, "compressor.json", "README.md", "report.json"]
    )
    pushed = scene(PUSH, run_dir, "org/model")
    repository = hub.repositories["org/model"]
    assert pushed["commit"] == list(repository.commits)[-1] and len(repository.commits) == 2, (
        "one commit, after creation"
    )
    assert repository.messages[-1] == f"smoke: int8 (w8a8-dynamic), {bert.digest[:12]}"
    files = repository.commits[pushed["commit"]]
    assert files["onnx/model_int8.onnx"] == (bert.path / "onnx/model_int8.onnx").read_bytes()
    assert b'compressor.load("org/model", precision="onnx-w8a8-dynamic")' in files["README.md"]

    hub.asked.clear()
    loaded = scene(LOAD, "org/model", "int8", "main", TEXT)
    assert (loaded["variant"], loaded["commit"]) == ("onnx-w8a8-dynamic", pushed["commit"])
    assert loaded["answer"] == load(bert.path, precision="int8", threads=1).predict(TEXT)[0]
    assert "onnx/model_int8.onnx" in loaded["files"] and "config.json" in loaded["files"]
    assert not {"model.safetensors", "onnx/model.onnx", "report.json"} & set(loaded["files"]), "only what it needs"

    # The same from the cache, with no network; another precision is not there and says so.
    again = scene(LOAD, "org/model", "int8", "", TEXT, HF_HUB_OFFLINE="1")
    assert again["answer"] == loaded["answer"]
    absent = scene(LOAD, "org/model", "torch-fp32", "", TEXT, HF_HUB_OFFLINE="1")
    assert absent.startswith(
        f"CheckpointError: org/model@{pushed['commit']}: not in the local cache, and the hub cannot"
    )


@pytest.mark.slow
def test_a_second_push_removes_what_no_longer_belongs(scene: Any, hub: Stand, run_dir: Path) -> None:
    hub.repositories["org/model"] = Repository()
    hub.repositories["org/model"].add({"compressor.json": b"{}", "onnx/model_old.onnx": b"x", ".gitattributes": b""})
    pushed = scene(PUSH, run_dir, "org/model")
    assert pushed["delete"] == ["onnx/model_old.onnx"]
    assert "onnx/model_old.onnx" not in hub.repositories["org/model"].commits[pushed["commit"]]


@pytest.mark.slow
def test_pushes_that_are_refused(scene: Any, hub: Stand, run_dir: Path, bert: Checkpoint, tmp_path: Path) -> None:
    hub.repositories["org/theirs"] = Repository()
    hub.repositories["org/theirs"].add({"weights.bin": b"x", "a.txt": b""})
    assert scene(PUSH, run_dir, "org/theirs") == (
        "UserError: org/theirs: the repository holds 2 files that are not this toolkit's, such as a.txt\n"
        "  -> push to a new repository, or to a branch of its own: --branch compressed"
    )
    assert scene(PUSH, run_dir, "no-name").startswith("UserError: 'no-name' is no name of a hub repository\n")
    assert "no such hub repository (or no access to it)" in scene(PUSH, run_dir, "org/new", token=None, home="empty")
    assert scene(PUSH, run_dir, "org/limited").startswith("UserError: org/limited: the hub answered 429 (too many")
    assert scene(PUSH, bert.path, "org/model").startswith(
        f"UserError: {bert.path}: a checkpoint without its run has no report"
    )
    failed = tmp_path / "failed"
    shutil.copytree(run_dir, failed)
    state = json.loads((failed / "run.json").read_text())
    step = {"id": "int8", "kind": "quantize", "scratch": False, "status": "failed", "error": "ran out of disk"}
    (failed / "run.json").write_text(json.dumps({**state, "status": "failed", "steps": [step]}))
    assert scene(PUSH, failed, "org/model").startswith(
        f"UserError: {failed}: the run failed at int8 (ran out of disk), and its report is of an earlier one"
    )


def test_a_broken_download_goes_on_where_it_stopped(scene: Any, hub: Stand) -> None:
    hub.repositories["org/big"] = Repository()
    data = bytes(range(256)) * 90_000  # 23 MB: the client keeps what it has in pieces of 10 MiB
    hub.repositories["org/big"].add({"model.safetensors": data, "config.json": b"{}"})
    hub.break_after = 15_000_000
    program = """
from compressor.checkpoints.files import sha256_file
from compressor.checkpoints.hub import resolve
print(json.dumps(sha256_file(resolve("org/big")[0] / "model.safetensors")))
"""
    assert scene(program) == hashlib.sha256(data).hexdigest()
    assert hub.break_after is None and hub.ranges == ["bytes=10485760-"], "the rest was asked for, not the whole"


@pytest.mark.slow
def test_a_private_repository_needs_the_token(scene: Any, hub: Stand, run_dir: Path) -> None:
    scene(PUSH, run_dir, "org/model")
    hub.repositories["org/model"].private = True
    assert scene(LOAD, "org/model", "int8", "", TEXT)["variant"] == "onnx-w8a8-dynamic"
    refused = scene(LOAD, "org/model", "int8", "", TEXT, token=None, home="another")
    assert refused.startswith("CheckpointError: org/model: no such folder, and no such hub repository (or no access")
    assert "log in with `hf auth login` or set HF_TOKEN" in refused


def test_a_tampered_file_is_refused_whoever_serves_it(scene: Any, hub: Stand, run_dir: Path) -> None:
    commit = scene(PUSH, run_dir, "org/model")["commit"]
    files = hub.repositories["org/model"].commits[commit]
    graph = bytearray(files["onnx/model_int8.onnx"])
    graph[-100] ^= 1
    files["onnx/model_int8.onnx"] = bytes(graph)
    refused = scene(LOAD, "org/model", "int8", "", TEXT)
    assert "model_int8.onnx: corrupt or changed: its sha256 is not the manifest's" in refused


@pytest.mark.slow
def test_revisions_manifests_and_models_that_are_not_as_hoped(
    scene: Any, hub: Stand, run_dir: Path, tiny_bert_dir: Path
) -> None:
    commit = scene(PUSH, run_dir, "org/model")["commit"]
    assert scene(LOAD, "org/model", "", "gone", TEXT) == (
        "CheckpointError: org/model: the hub repository has no revision 'gone'\n  -> check the branch, tag or commit"
    )
    files = hub.repositories["org/model"].commits[commit]
    newer = {**json.loads(files["compressor.json"]), "schema": "compressor-manifest/9"}
    hub.repositories["org/newer"] = Repository()
    hub.repositories["org/newer"].add({**files, "compressor.json": json.dumps(newer).encode()})
    assert "the manifest is of version 'compressor-manifest/9'; this toolkit reads" in scene(
        LOAD, "org/newer", "", "", TEXT
    )
    hub.repositories["org/stock"] = Repository()
    stock = {path.name: path.read_bytes() for path in tiny_bert_dir.iterdir()}
    commit = hub.repositories["org/stock"].add({**stock, "pytorch_model.bin": b"a pickle", "modeling.py": b"code"})
    opened = scene(LOAD, "org/stock", "", "", TEXT)
    assert opened["variant"] is None and opened["commit"] == commit
    assert opened["missing"][0] == "no compressor.json: its files are not verified against any sha256"
    assert not {"pytorch_model.bin", "modeling.py"} & set(opened["files"])
    assert "the hub answered 429 (too many requests)" in scene(LOAD, "org/limited", "", "", TEXT)
