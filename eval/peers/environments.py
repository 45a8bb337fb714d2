"""Build the environments of the other tools, each its own since their pins conflict.

    python eval/peers/environments.py                  # all
    python eval/peers/environments.py openvino optimum # some

A folder here names a tool; what it needs stands in its requirements.txt, or in package.json with a lock file. The
environment goes to .cache/envs/<tool> and is kept; one whose requirements changed is made anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

PEERS = Path(__file__).resolve().parent
ENVIRONMENTS = PEERS.parents[1] / ".cache" / "envs"
STAMP = ".built-from"


def needs(tool: str) -> list[Path]:
    """The files that say what a tool needs."""
    names = ("requirements.txt", "package.json", "package-lock.json")
    return [PEERS / tool / name for name in names if (PEERS / tool / name).is_file()]


def tools() -> list[str]:
    """Every tool that has a folder here."""
    return sorted(path.name for path in PEERS.iterdir() if path.is_dir() and needs(path.name))


def digest_of(tool: str) -> str:
    """Of what the tool needs."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in needs(tool))).hexdigest()


def is_built(tool: str) -> bool:
    """Whether its environment is there and fits."""
    stamp = ENVIRONMENTS / tool / STAMP
    return stamp.is_file() and stamp.read_text() == digest_of(tool)


def command(tool: str, script: str) -> list[str]:
    """How to run a script of the tool's folder in its environment."""
    if (PEERS / tool / "package.json").is_file():
        # Node looks for packages beside the script, so the script runs from a copy in the environment.
        target = ENVIRONMENTS / tool / script
        shutil.copyfile(PEERS / tool / script, target)
        return ["node", str(target)]
    return [str(ENVIRONMENTS / tool / "bin" / "python"), str(PEERS / tool / script)]


def build(tool: str) -> None:
    """Make the environment of a tool."""
    folder = ENVIRONMENTS / tool
    shutil.rmtree(folder, ignore_errors=True)
    if (PEERS / tool / "package.json").is_file():
        folder.mkdir(parents=True)
        for path in needs(tool):
            shutil.copyfile(path, folder / path.name)
        # The install script of onnxruntime-node would download a CUDA build; its CPU library is in the package.
        subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=folder, check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "-r", str(PEERS / tool / "requirements.txt")], check=True)
    (folder / STAMP).write_text(digest_of(tool))


def main() -> None:
    for tool in sys.argv[1:] or tools():
        if tool not in tools():
            sys.exit(f"no tool {tool!r} here; there are: {', '.join(tools())}")
        if is_built(tool):
            print(f"{tool}: there already")
        else:
            build(tool)
            print(f"{tool}: built")


if __name__ == "__main__":
    main()
