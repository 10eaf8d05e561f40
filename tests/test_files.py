"""Files are whole or not there, rows come back with their line numbers, and a store of answers survives a kill."""

import csv
import multiprocessing
import resource
import time
from pathlib import Path

import pytest

from finer1_lite.files import JsonLines, read_jsonl, write_csv, write_jsonl, write_whole

SERVER = multiprocessing.get_context("forkserver")


def test_rows_come_back_with_their_lines_and_a_broken_one_is_named(tmp_path):
    rows = [{"name": "Grünfink", "n": 1}, {"name": "a, \"b\"\nc", "extra": [1]}]
    write_jsonl(tmp_path / "deep" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "deep" / "rows.jsonl") == [(1, rows[0]), (2, rows[1])]
    write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]
    write_whole(tmp_path / "bom.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": 2}')  # as Windows writes it
    assert read_jsonl(tmp_path / "bom.jsonl") == [(1, {"a": 1}), (3, {"a": 2})]
    for content, line in ((b'{"a": 1}\n{"a"', 2), (b"[1]\n", 1), (b'{"a": "\xff"}', 1)):
        write_whole(tmp_path / "a.jsonl", content)
        with pytest.raises(ValueError, match=f"a.jsonl, line {line}"):
            read_jsonl(tmp_path / "a.jsonl")


def write_with_little_room(path: Path, outcome) -> None:
    """A process that may write files of 1 KiB at most: what a full disk says, for real."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    try:
        write_csv(path, [{"text": "x" * 5000}])
    except OSError as error:
        outcome.send(str(error))


def test_a_reader_has_the_whole_old_file_and_a_full_disk_leaves_it_and_no_part(tmp_path):
    path = write_whole(tmp_path / "results.csv", "old")
    with path.open() as reader:
        write_whole(path, "something new")
        assert reader.read() == "old" and path.read_text() == "something new"
    ours, theirs = SERVER.Pipe()
    process = SERVER.Process(target=write_with_little_room, args=(path, theirs))
    process.start()
    assert ours.poll(60) and "large" in ours.recv()
    process.join()
    assert path.read_text() == "something new" and [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_a_store_grows_drops_the_half_line_of_a_kill_and_refuses_what_somebody_changed(tmp_path):
    store = JsonLines(tmp_path / "answers" / "a.jsonl", ("key",))
    assert store.rows == []
    store.append({"key": 1, "text": "ü\nx"}, {"key": 2})
    with store.path.open("ab") as file:
        file.write(b'{"key": 3, "te')  # killed while it wrote
    again = JsonLines(store.path, ("key",))
    assert [row["key"] for row in again.rows] == [1, 2]
    again.append({"key": 4})
    store.append({"key": 5})  # the first one takes up what the second wrote
    assert [row["key"] for row in store.rows] == [1, 2, 4, 5] and store.rows[0]["text"] == "ü\nx"
    assert [row["key"] for _, row in read_jsonl(store.path)] == [1, 2, 4, 5]
    store.path.write_text('{"key": 1}\n')
    with pytest.raises(ValueError, match="a.jsonl got shorter"):
        store.append({"key": 6})
    store.path.write_text('{"key": 1}\n{"word": 1}\n')
    with pytest.raises(ValueError, match="a.jsonl, line 2: should be an object with key"):
        JsonLines(store.path, ("key",))


def append_many(path: Path, who: int) -> None:
    store = JsonLines(path)
    for n in range(40):
        store.append({"who": who, "n": n})


def test_processes_may_write_to_one_store_and_be_killed(tmp_path):
    path = tmp_path / "a.jsonl"
    writers = [SERVER.Process(target=append_many, args=(path, who)) for who in range(4)]
    for process in writers:
        process.start()
    while not path.exists() or b'"who": 3' not in path.read_bytes():
        time.sleep(0.001)
    writers[3].kill()  # SIGKILL
    for process in writers:
        process.join()
    said = {who: [row["n"] for row in JsonLines(path).rows if row["who"] == who] for who in range(4)}
    assert all(said[who] == list(range(40)) for who in range(3)) and said[3] == list(range(len(said[3]))) != []
