"""Stored responses: chains, owners, bounds by bytes and age, and what survives."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from server.api.core.errors.api_errors import ResponseNotFoundError, ResponseStoreError
from server.api.core.replies.response_store import FILE, PreviousResponseError, ResponseStore, UnusableStoreError

ANN, BOB = b"ann", b"bob"


class Clock:
    """A time that tests set."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_store(tmp_path, clock):
    stores = []

    def open_one(folder="store", max_bytes=10_000, max_age_seconds=100.0):
        stores.append(ResponseStore(tmp_path / folder, max_bytes, max_age_seconds, clock))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()


def save(store, response_id, parent=None, owner=ANN, size=1):
    store.save(owner, {"id": response_id, "output": [f"out {response_id}"]}, [response_id * size], parent)


def test_a_conversation_has_the_items_of_all_its_turns_in_order(store):
    save(store, "a")
    save(store, "b", "a")
    save(store, "other")
    save(store, "c", "b")
    assert store.conversation(ANN, "c") == ["a", "out a", "b", "out b", "c", "out c"]


def test_a_response_can_be_continued_twice(store):
    save(store, "a")
    save(store, "b", "a")
    save(store, "c", "a")
    assert store.conversation(ANN, "c") == ["a", "out a", "c", "out c"]


def test_a_response_is_found_until_it_is_deleted(store):
    save(store, "a")
    assert store.find(ANN, "a").response["output"] == ["out a"]
    store.delete(ANN, "a")
    with pytest.raises(ResponseNotFoundError, match="'a'"):
        store.find(ANN, "a")
    with pytest.raises(ResponseNotFoundError, match="'a'"):
        store.delete(ANN, "a")


def test_a_response_belongs_to_its_owner(store):
    save(store, "a")
    for use in (store.find, store.delete):
        with pytest.raises(ResponseNotFoundError):
            use(BOB, "a")
    with pytest.raises(PreviousResponseError, match="must be the 'id' of a stored response: 'a' is unknown"):
        store.conversation(BOB, "a")
    assert store.find(ANN, "a").input == ["a"]


def test_a_conversation_without_its_beginning_is_refused(store):
    save(store, "a")
    save(store, "b", "a")
    store.delete(ANN, "a")
    with pytest.raises(PreviousResponseError, match="whose beginning was deleted"):
        store.conversation(ANN, "b")


@pytest.mark.parametrize(("name", "most"), [("MAX_CHAIN", 2), ("MAX_CHAIN_BYTES", 100)])
def test_a_conversation_that_is_too_long_is_refused(store, monkeypatch, name, most):
    monkeypatch.setattr(f"server.api.core.replies.response_store.{name}", most)
    for parent, response_id in ((None, "a"), ("a", "b"), ("b", "c"), ("c", "d")):
        save(store, response_id, parent)
    with pytest.raises(PreviousResponseError, match="begin a new one"):
        store.conversation(ANN, "d")


def test_what_was_not_used_for_the_longest_time_makes_room(store, clock):
    for response_id in "abc":
        clock.seconds += 1
        save(store, response_id, size=3000)
    clock.seconds += 1
    store.conversation(ANN, "a")
    save(store, "d", size=3000)
    assert [store.find(ANN, each).input[0][0] for each in "acd"] == ["a", "c", "d"]
    with pytest.raises(ResponseNotFoundError):
        store.find(ANN, "b")


def test_a_response_larger_than_the_store_is_not_stored(store):
    save(store, "a")
    with pytest.raises(ResponseStoreError, match="more than the store may have"):
        save(store, "b", size=20_000)
    assert store.find(ANN, "a").input == ["a"]


def test_a_response_that_nobody_continues_becomes_too_old(store, clock):
    save(store, "old")
    save(store, "used")
    clock.seconds = 99
    store.conversation(ANN, "used")
    clock.seconds = 101
    with pytest.raises(ResponseNotFoundError):
        store.find(ANN, "old")
    assert store.find(ANN, "used").input == ["used"]


def test_what_is_deleted_leaves_the_file(store, tmp_path):
    save(store, "secretsecret")
    store.delete(ANN, "secretsecret")
    save(store, "b")
    store.close()
    assert b"secretsecret" not in (tmp_path / "store" / FILE).read_bytes()


def test_responses_survive_a_restart(open_store):
    store = open_store()
    save(store, "a")
    store.close()
    assert open_store().conversation(ANN, "a") == ["a", "out a"]


def test_responses_survive_the_end_of_a_killed_process(open_store, tmp_path):
    save(open_store(), "a")
    shutil.copytree(tmp_path / "store", tmp_path / "left")  # the files as a process leaves them that closes nothing
    assert open_store("left").conversation(ANN, "a") == ["a", "out a"]


def test_only_the_user_can_read_the_file(store, tmp_path):
    save(store, "a")
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "store").iterdir())


def test_a_file_that_is_no_database_is_named(open_store, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / FILE).write_bytes(b"x" * 5000)
    with pytest.raises(UnusableStoreError, match=rf"{FILE} is damaged or no database \(.*\): move it away"):
        open_store()


def test_a_damaged_page_is_found_at_the_start(open_store, tmp_path):
    store = open_store(max_bytes=1_000_000)
    for number in range(20):
        save(store, f"r{number}", size=1000)
    store.close()
    path = tmp_path / "store" / FILE
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 6] = b"\xff" * 4096 * 3
    path.write_bytes(data)
    with pytest.raises(UnusableStoreError, match="is damaged or no database"):
        open_store()


def test_a_table_of_another_version_is_refused(open_store, tmp_path):
    open_store().close()
    with sqlite3.connect(tmp_path / "store" / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UnusableStoreError, match="of another version of Greenroom"):
        open_store()


def test_a_folder_that_can_not_be_made_is_named(open_store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnusableStoreError, match="file/below: Not a directory"):
        open_store("file/below")


def test_an_error_of_the_database_is_one_sentence(store):
    store.close()
    with pytest.raises(
        ResponseStoreError, match=r"can't use its stored responses: Cannot operate on a closed database\."
    ):
        store.find(ANN, "a")
