"""The hub over HTTP, against a stand-in on this machine: the client reads its address once, so in a child process."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "pytorch_model.bin": b"a pickle", "modeling.py": b"code"}
REFUSALS = {"none": (401, "RepoNotFound"), "gated": (403, "GatedRepo"), "busy": (503, "")}


class Hub(http.server.BaseHTTPRequestHandler):
    """`organisation/good` at one commit; other names are refused as the hub refuses them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/").split("/")
        name = path[path.index("organisation") + 1] if "organisation" in path else ""
        if name in REFUSALS:
            self.answer(REFUSALS[name][0], b"{}", {"X-Error-Code": REFUSALS[name][1]})
        elif "revision" in path:
            if path[-1] == "gone":
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                self.answer(200, json.dumps({"id": "organisation/good", "sha": COMMIT, "siblings": []}).encode())
        elif "tree" in path:
            rows = [{"type": "file", "path": file, "size": len(data), "oid": file} for file, data in FILES.items()]
            self.answer(200, json.dumps(rows).encode())
        elif "resolve" in path:
            self.answer(200, FILES[path[-1]], {"ETag": f'"{path[-1]}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    """What `resolve` says to each name: the folder's files and the commit, or the error's text."""
    program = """
import json, sys
from compressor.checkpoints.hub import resolve
from compressor.errors import CompressorError
answers = {}
for name in sys.argv[1:]:
    try:
        folder, commit = resolve(*name.split("@"))
        answers[name] = [*sorted(path.name for path in folder.iterdir()), commit]
    except CompressorError as error:
        answers[name] = [str(error)]
print(json.dumps(answers))
"""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
    }
    names = ["organisation/good", "organisation/good@gone", *(f"organisation/{name}" for name in REFUSALS)]
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    yield json.loads(done.stdout)


def test_a_snapshot_comes_without_pickles_and_code(answers: dict[str, list[str]]) -> None:
    assert answers["organisation/good"] == ["config.json", COMMIT]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good@gone", "organisation/good: the hub repository has no revision 'gone'\n  -> check the branch, tag or"),
        ("none", "organisation/none: no such folder, and no such hub repository (or no access to it)\n  -> check the"),
        ("gated", "organisation/gated: the hub repository is gated\n  -> ask for access at its page on the hub, then"),
        ("busy", "organisation/busy: the hub answered 503\n  -> wait a moment and try again, or set HF_TOKEN"),
    ],
)
def test_refusals(answers: dict[str, list[str]], name: str, expected: str) -> None:
    assert answers[f"organisation/{name}"][0].startswith(expected)


def test_only_one_file_speaks_to_the_hub() -> None:
    import compressor

    root = Path(compressor.__file__).parent
    users = [
        file.relative_to(root).as_posix()
        for file in sorted(root.rglob("*.py"))
        if any(line.lstrip().startswith(("import huggingface_hub", "from huggingface_hub")) for line in file.open())
    ]
    assert users == ["checkpoints/hub.py"]
