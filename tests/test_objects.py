"""A store's promises: an object is absent or complete, and what was changed since it was written is found out."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_server import S3Server

from core.errors import ConfigError, JumpsuiteError
from storage import lease, release
from storage.objects import Corrupt, Store
from storage.places import Taken
from storage.publishing import changes, fetch, publish

RECORD = {"sites": ["L00.resid_post", "L01.mlp_out"], "step": 40, "loss": 0.125, "note": "θ is ε", "inner": {"none": None, "true": True}}


def _changed(store: Store, key: str, change: Any) -> None:
    record = json.loads(store.get(key))
    change(record)
    store.put(key, json.dumps(record).encode())


class Contract:
    """What every store promises, wherever it lies."""

    @pytest.fixture
    def store(self, place: str) -> Store:
        return Store(place)

    @pytest.mark.parametrize("seconds", [0.05, 0.2])
    def test_a_writer_that_is_killed_leaves_whole_objects_and_nothing_else(self, store: Store, seconds: float) -> None:
        script = (
            "import sys; from storage.objects import Store; store = Store(sys.argv[1]); print('ready', flush=True); n = 0\n"
            "while True: store.put(f'things/{n % 5}', bytes([n % 256]) * 4_000_000); n += 1"
        )
        with subprocess.Popen([sys.executable, "-c", script, store.address], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            threading.Event().wait(seconds)
            os.kill(writer.pid, signal.SIGKILL)
        for key in store.keys("things"):
            data = store.get(key)
            assert len(data) == 4_000_000
            assert data == data[:1] * len(data)
        assert set(store.keys("things")) <= {f"things/{n}" for n in range(5)}

    def test_objects_are_listed_by_whole_parts_of_their_names(self, store: Store) -> None:
        for key in ("a/1", "a/b/2", "ab/3", "a.txt"):
            store.put(key, key.encode())
        assert store.keys("a") == ["a/1", "a/b/2"]
        assert store.keys("nothing") == []
        assert store.has("a/b/2")
        assert not store.has("a/b")
        assert not store.has("a/b/3")
        assert store.get("a/b/2") == b"a/b/2"
        store.delete("a/b/2")
        store.delete("a/b/2")
        assert store.keys("a") == ["a/1"]
        with pytest.raises(FileNotFoundError):
            store.get("a/b/2")

    def test_a_record_is_read_back_as_it_was_put(self, store: Store) -> None:
        assert store.get_record("records/one.json") is None
        store.put_record("records/one.json", RECORD)
        assert store.get_record("records/one.json") == RECORD
        with pytest.raises(ValueError, match="JSON compliant"):
            store.put_record("records/two.json", {"loss": float("nan")})
        assert not store.has("records/two.json")

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: record.update(step=41),
            lambda record: record.update(extra=None),
            lambda record: record.pop("note"),
            lambda record: record.pop("checksum"),
            lambda record: record.update(checksum=None),
            lambda record: record["sites"].reverse(),
            lambda record: record.update(loss=float("nan")),
            lambda record: record.update(note="\ud800"),
        ],
    )
    def test_a_changed_record_is_found_out_and_named(self, store: Store, change: Any) -> None:
        store.put_record("records/one.json", RECORD)
        _changed(store, "records/one.json", change)
        with pytest.raises(Corrupt, match=rf"^{store.where('records/one.json')} (was changed since|is not a record).*; delete it and run again$"):
            store.get_record("records/one.json")

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'["checksum"]', b"7", b"null", b'"checksum"', b"{}", b"\xff\xfe", b"[" * 100_000])
    def test_what_is_no_record_at_all_is_found_out(self, store: Store, data: bytes) -> None:
        store.put("records/one.json", data)
        with pytest.raises(Corrupt, match=f"^{store.where('records/one.json')} is not a record; expected JSON with a checksum"):
            store.get_record("records/one.json")

    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
    def test_no_byte_of_a_record_can_change_its_meaning(self, store: Store, place: int, byte: int) -> None:
        store.put_record("record.json", RECORD)
        data = bytearray(store.get("record.json"))
        data[place % len(data)] = byte
        store.put("record.json", bytes(data))
        try:
            assert store.get_record("record.json") == RECORD  # white space, or the byte that was there
        except Corrupt as damage:
            assert store.where("record.json") in str(damage)  # noqa: PT017 - either is right

    def test_an_object_with_a_known_checksum_is_checked_on_every_read(self, store: Store) -> None:
        data = random.Random(0).randbytes(10_000)  # noqa: S311
        sha256 = store.put("weights", data)
        assert store.get_checked("weights", sha256) == data
        where = store.where("weights")
        for place in (0, 5_000, 9_999):
            store.put("weights", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(Corrupt, match=rf"^{where} was changed since it was written; expected SHA-256 {sha256[:12]}…"):
                store.get_checked("weights", sha256)
        store.put("weights", data[:-1])
        with pytest.raises(Corrupt, match="was changed since it was written"):
            store.get_checked("weights", sha256)
        store.delete("weights")
        with pytest.raises(Corrupt, match=f"^{where} is missing; expected the file that was written there"):
            store.get_checked("weights", sha256)

    def test_two_runs_never_work_under_one_prefix_and_a_dead_one_holds_nothing(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "SILENCE", SILENCE)
        with another_run_at(store, "a/b"):
            with (
                pytest.raises(JumpsuiteError, match=r"a/b is being worked on by another run; expected one at a time; wait for it to end"),
                store.lock("a/b"),
            ):
                pass
            with store.lock("a/c"):
                pass
        for _ in range(2):
            with store.lock("a/b"):
                pass

    def test_what_a_dead_run_held_is_swept_away_by_one_that_works_on(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "SILENCE", SILENCE)
        with another_run_at(store, "alive"):
            with another_run_at(store, "dead"):
                pass
            for _ in range(5):  # none of them as long as it takes to know that the dead are silent
                with store.lock("mine"):
                    threading.Event().wait(SILENCE / 2)
            assert {Path(key).stem for key in store.keys("locks")} == {"alive"}
            with pytest.raises(Taken), store.lock("alive"):
                pass


SILENCE = 6.0
"""Of leases in tests: little, but more than a busy machine keeps anybody from a sign of life."""


@contextmanager
def another_run_at(store: Store, name: str) -> Iterator[None]:
    """While another process works under the name; at the end it is killed."""
    hold = (
        "import sys, threading; from storage import lease; from storage.objects import Store; lease.SILENCE = float(sys.argv[3])\n"
        "with Store(sys.argv[1]).lock(sys.argv[2]):\n    print('held', flush=True); threading.Event().wait()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, store.address, name, str(SILENCE)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
    finally:
        other.kill()
        other.wait()


class TestFolder(Contract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(tmp_path / "store")

    # S3 promises the same of itself; rclone's server does not keep it for an object that is read while it is replaced.
    def test_a_reader_sees_the_old_object_or_the_new_one_and_never_a_part(self, store: Store) -> None:
        versions = [bytes([version]) * 3_000_000 for version in range(2)]
        store.put("some/thing", versions[0])
        stop, seen = threading.Event(), []

        def read() -> None:
            while not stop.is_set():
                seen.append(store.get("some/thing") in versions)
                seen.append(store.keys("some") == ["some/thing"])

        reader = threading.Thread(target=read)
        reader.start()
        for turn in range(40):
            store.put("some/thing", versions[turn % 2])
        stop.set()
        reader.join()
        assert len(seen) > 10
        assert all(seen)


class TestBucket(Contract):
    @pytest.fixture
    def place(self, s3: S3Server) -> str:
        return "s3://bucket/a/store"


@pytest.mark.parametrize("name", ["with space", "100%", "per%20cent", "hash#1", "ünï", "a+b&c=d", "[brackets]", "q?mark"])
def test_a_root_may_have_any_name(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / name / "store")
    store.put("x/y", b"here")
    assert (tmp_path / name / "store" / "x" / "y").read_bytes() == b"here"
    assert Store(str(tmp_path / name / "store")).keys("x") == ["x/y"]


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("x", b"1")
    assert (tmp_path / "runs" / "x").exists()


def test_a_root_that_cannot_be_a_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=rf"^--store is '{tmp_path}/file', which is a file; expected a folder; choose another$"):
        Store(tmp_path / "file")
    below = tmp_path / "file" / "below"
    with pytest.raises(ConfigError, match=rf"^--store is '{below}', which cannot be made \(Not a directory\); expected a folder; choose another$"):
        Store(below).put("x", b"1")
    for root in ("s3://", "http://bucket/x", "file:///tmp/x"):
        with pytest.raises(
            ConfigError, match=r"^--store is '\S+'; expected a folder or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        ):
            Store(root)


def test_a_store_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert not store.has("x")
    assert store.keys("x") == []
    assert store.get_record("x.json") is None
    with pytest.raises(FileNotFoundError):
        store.get("x")
    with pytest.raises(Corrupt, match="is missing"):
        store.get_checked("x", "0" * 64)
    store.delete("x")
    assert not (tmp_path / "store").exists()


def test_what_a_killed_writer_left_beside_an_object_is_swept_away(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.put("a/b/object.json", b"whole")
    (store.local("") / "a/b/object.json#1").write_bytes(b"ha")
    with store.lock("a/b"):
        assert [path.name for path in (store.local("") / "a/b").iterdir()] == ["object.json"]


def test_a_bucket_that_cannot_be_reached_is_said_in_a_sentence_without_a_secret(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^--store is 's3://absent/x', which cannot be reached \(NoSuchBucket: The specified bucket"):
        Store("s3://absent/x").make()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(ConfigError, match=r"cannot be reached \(SignatureDoesNotMatch: .*set them \(for S3 AWS_ACCESS_KEY_ID") as refused:
        Store("s3://bucket/x").put("x", b"1")
    assert "not-the-secret" not in str(refused.value)
    s3.kill()
    with pytest.raises(ConfigError, match=r"cannot be reached \(Connection refused\)"):
        Store("s3://bucket/x").put("x", b"1")


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/x", "s3://bucket/x?secret=1", "az://container/x#secret"])
def test_credentials_in_an_address_are_refused_and_not_said_again(url: str) -> None:
    with pytest.raises(ConfigError, match="put credentials and options into the environment alone") as refused:
        Store(url)
    assert "secret" not in str(refused.value)


def test_a_server_that_is_away_for_a_while_is_waited_for(s3: S3Server) -> None:
    store = Store("s3://bucket/x")
    store.put("record", b"1")
    s3.kill()
    back = threading.Timer(4, s3.start)
    back.start()
    store.put("record", b"2")
    assert store.get("record") == b"2"
    back.join()


@pytest.mark.parametrize("creates_conditionally", [True, False])
def test_of_two_that_take_a_lease_at_once_one_gets_it(s3: S3Server, creates_conditionally: bool) -> None:
    s3.creates_conditionally = creates_conditionally
    leases = [lease.Leases(Store("s3://bucket/x")._objects, "locks") for _ in range(4)]
    gate, held, refused = threading.Barrier(4, timeout=120), [], []

    def contend(mine: lease.Leases) -> None:
        gate.wait()
        try:
            with mine.hold("name", lambda: JumpsuiteError("taken")):
                held.append(1)
                gate.wait()  # for the others to have tried
        except JumpsuiteError:
            refused.append(1)
            gate.wait()

    threads = [threading.Thread(target=contend, args=(mine,)) for mine in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)


def test_a_lease_that_a_list_does_not_show_yet_is_not_taken_over(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = (lease.Leases(Store("s3://bucket/x")._objects, "locks") for _ in range(2))
    monkeypatch.setattr(theirs, "_look", dict)
    with (
        mine.hold("name", lambda: JumpsuiteError("taken")),
        pytest.raises(JumpsuiteError, match="taken"),
        theirs.hold("name", lambda: JumpsuiteError("taken")),
    ):
        pass


def test_a_lease_lasts_as_long_as_its_holder_lives(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SILENCE", SILENCE)
    leases = lease.Leases(Store("s3://bucket/x")._objects, "locks")
    with leases.hold("name", lambda: JumpsuiteError("taken")):
        began = time.monotonic()
        while time.monotonic() < began + 2 * SILENCE:
            with pytest.raises(JumpsuiteError, match="taken"), leases.hold("name", lambda: JumpsuiteError("taken")):
                pass


@pytest.mark.parametrize("place", ["s3://bucket", "s3://bucket/", "s3://bucket/a/release"])
def test_a_release_in_a_bucket_is_the_folder_it_was_made_in_and_nothing_older(s3: S3Server, tmp_path: Path, place: str) -> None:
    made, fetched = tmp_path / "made", tmp_path / "fetched"
    with release.staged(made) as stage:
        release.write_file(stage, "README.md", b"words")
        release.write_file(stage, "saelens/L00/weights", b"numbers")
    before = tmp_path / "before"
    with release.staged(before) as stage:
        release.write_file(stage, "scorecards/old.json", b"of the release before")
    for folder in (before, made):
        list(publish(folder, place, ""))
    fetch(place, fetched)
    assert {str(path.relative_to(fetched)) for path in fetched.rglob("*") if path.is_file()} == {"README.md", "SHA256SUMS", "saelens/L00/weights"}
    assert release.check_sums(fetched) == []
    assert str(changes(made, place)) == "0 files to send (0.00 GB), 0 to remove, 2 there already"
    assert not (Path.cwd() / "s3:").exists()


def test_a_release_that_breaks_off_on_its_way_into_a_bucket_is_none_until_it_is_whole(s3: S3Server, tmp_path: Path, monkeypatch: Any) -> None:
    place, releases = "s3://bucket/release", {}
    for name, files in {"a": {"x": b"1", "kept": b"k"}, "b": {"x": b"2", "kept": b"k", "own": b"b"}, "c": {"x": b"1", "kept": b"k"}}.items():
        releases[name] = tmp_path / name
        with release.staged(releases[name]) as stage:
            for file, data in files.items():
                release.write_file(stage, file, data)
    list(publish(releases["a"], place, ""))
    put, broken = Store.put_file, OSError("the machine is gone")

    def breaks(self: Store, name: str, path: Path) -> None:
        put(self, name, path)
        raise broken

    monkeypatch.setattr(Store, "put_file", breaks)
    with pytest.raises(OSError, match="the machine is gone"):
        list(publish(releases["b"], place, ""))
    monkeypatch.setattr(Store, "put_file", put)
    with pytest.raises(JumpsuiteError, match=r"is being made a release, or that broke off"):
        fetch(place, tmp_path / "broken")
    for name in ("c", "b", "a"):
        list(publish(releases[name], place, ""))
        fetched = fetch(place, tmp_path / f"fetched-{name}")
        assert release.check_sums(fetched) == []
        assert {path.name for path in fetched.iterdir()} == {path.name for path in releases[name].iterdir()}


def test_a_release_never_replaces_a_bucket_that_holds_other_things(s3: S3Server, tmp_path: Path) -> None:
    made, store = tmp_path / "made", Store("s3://bucket")
    with release.staged(made) as stage:
        release.write_file(stage, "README.md", b"words")
    store.put("thesis", b"years of work")
    for _ in range(2):
        with pytest.raises(JumpsuiteError, match=r"^s3://bucket is there and is not a release, or holds other files too; expected a new place or"):
            list(publish(made, "s3://bucket", ""))
        assert store.keys("") == ["thesis"]


def test_a_bucket_without_a_release_is_said_in_a_sentence(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(JumpsuiteError, match=r"^s3://bucket/none holds nothing; expected a release; name what jumpsuite release wrote"):
        fetch("s3://bucket/none/", tmp_path / "fetched")
