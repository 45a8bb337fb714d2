"""A small Hugging Face hub on this machine: repositories in memory, behind the HTTP that the hub's client speaks.

Reads (`revision`, `tree`, `resolve` with ranges), writes (`repos/create`, `preupload`, LFS batch, `commit`); refusals
are those of the real hub: its status and its `X-Error-Code`.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_stand_in"
REFUSALS = {"none": (401, "RepoNotFound"), "gated": (403, "GatedRepo"), "busy": (503, ""), "limited": (429, "")}
BIG = 4000
"""Bytes from which a file goes through LFS."""


@dataclass
class Repository:
    """Files by commit; the last one is the main branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, files: dict[str, bytes], message: str = "") -> str:
        commit = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.messages.append(message)
        return commit

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch or commit."""
        if revision in ("main", "") and self.commits:
            return list(self.commits.items())[-1]
        return (revision, self.commits[revision]) if revision in self.commits else None


class Stand(http.server.ThreadingHTTPServer):
    """The server and its memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.break_after: int | None = None
        """Cut the next whole download of a big file after so many bytes, once."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def stand_in() -> Iterator[Stand]:
    """A running hub."""
    server = Stand()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Hub(http.server.BaseHTTPRequestHandler):
    """The hub's answers."""

    protocol_version = "HTTP/1.1"
    server: Stand

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = self.opened(self.path.split("?")[0].strip("/").split("/"))
        if found is None:
            return
        name, repository, rest = found
        if rest[:1] == ["revision"] or not rest:
            at = repository.at("/".join(rest[1:]))
            if at is None:
                self.refuse(404, "RevisionNotFound")
                return
            siblings = [{"rfilename": path} for path in sorted(at[1])]
            self.say({"id": name, "sha": at[0], "siblings": siblings, "private": repository.private, "tags": []})
        elif rest[0] == "tree":
            at = repository.at(rest[1])
            files = {} if at is None else at[1]
            self.say(tree_of(files, "/".join(rest[2:]), recursive="recursive=true" in self.path.lower()))
        elif rest[0] == "resolve":
            at = repository.at(rest[1])
            path = "/".join(rest[2:])
            if at is None or path not in at[1]:
                self.refuse(404, "EntryNotFound" if at else "RevisionNotFound")
            else:
                self.file(at[1][path], at[0])
        else:
            self.refuse(404, "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0].strip("/")
        if path == "api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif "/paths-info/" not in path and not self.may_write():
            self.refuse(401, "RepoNotFound")
        elif path == "api/repos/create":
            self.create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(body))
        else:
            found = self.opened(path.split("/"))
            if found is not None:
                name, repository, rest = found
                if rest[0] == "preupload":
                    files = json.loads(body)["files"]
                    modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] >= BIG else "regular"} for f in files]
                    self.say({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
                elif rest[0] == "paths-info":
                    wanted, at = json.loads(body)["paths"], repository.at(rest[1])
                    self.say(files_of({path: data for path, data in at[1].items() if path in wanted} if at else {}))
                else:
                    self.commit(name, repository, body)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, b"")

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            self.answer(409, json.dumps({"url": f"{self.server.url}/{name}"}).encode())
            return
        repository = self.server.repositories[name] = Repository(private=bool(wanted.get("private")))
        repository.add({".gitattributes": b""})
        self.say({"url": f"{self.server.url}/{name}"})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}} for one in wanted["objects"]
        ]
        self.say({"transfer": "basic", "objects": objects})

    def commit(self, name: str, repository: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        now = repository.at("main")
        files = {} if now is None else dict(now[1])
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.add(files, message)
        self.say({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit, "hookOutput": ""})

    def opened(self, path: list[str]) -> tuple[str, Repository, list[str]] | None:
        """The repository that a path names and what is asked of it; refuses what may not be seen."""
        parts = path[2:] if path[0] == "api" else path[1:] if path[0] == "datasets" else path
        name, rest = "/".join(parts[:2]), parts[2:]
        self.server.asked.append("/".join(rest))
        if len(parts) < 2:
            self.refuse(404, "")
            return None
        if parts[1] in REFUSALS:
            self.refuse(*REFUSALS[parts[1]])
            return None
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.may_write()):
            self.refuse(401 if repository else 404, "RepoNotFound")
            return None
        return name, repository, rest

    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def file(self, data: bytes, commit: str) -> None:
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start, asked = 0, self.headers.get("Range")
        if asked:
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.server.break_after
        if cut is not None and self.command == "GET" and start == 0 and len(data) > cut:
            self.server.break_after = None
            self.answer(200, data[:cut], headers, length=len(data))
            self.close_connection = True
            return
        self.answer(206 if asked else 200, data[start:], headers)

    def say(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body) if length is None else length), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def files_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": "file", "path": p, "size": len(d), "oid": git_oid(d)} for p, d in sorted(files.items())]


def tree_of(files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder; the files of its folders in their place where it is asked for."""
    below = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
    n_parts = folder.count("/") + 1 if folder else 0
    folders = {"/".join(path.split("/")[: n_parts + 1]) for path in below if path.count("/") > n_parts}
    if recursive:
        return files_of(below)
    here = files_of({path: data for path, data in below.items() if path.count("/") == n_parts})
    return here + [{"type": "directory", "path": path, "size": 0, "oid": git_oid(b"")} for path in sorted(folders)]


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
