"""Laws of object stores, on a real S3 server over HTTP: what is put is got, patience ends, refusals are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import BUCKET, S3Server

from ganscale.runtime.storage import ObjectStore, StorageAway, StorageError, child, is_uri, last_name, parent

pytestmark = pytest.mark.distributed
PREFIX = f"s3://{BUCKET}/some/where"


def test_what_is_put_is_got_listed_and_deleted(server: S3Server, address, tmp_path: Path):
    store = ObjectStore(f"{PREFIX}/whole")
    store.put("a/b.json", b"{}")
    (tmp_path / "big").write_bytes(bytes(range(256)) * 40_000)  # over the size of one part of an upload
    store.put_file("big.bin", tmp_path / "big")
    assert store.get("a/b.json") == b"{}"
    store.get_file("big.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert {name: entry.bytes for name, entry in store.list().items()} == {"a/b.json": 2, "big.bin": 10_240_000}
    assert server.objects("some/where/whole") == {
        "some/where/whole/a/b.json": 2,
        "some/where/whole/big.bin": 10_240_000,
    }
    store.delete(["a/b.json", "never-there"])
    assert list(store.list()) == ["big.bin"]
    with pytest.raises(FileNotFoundError):
        store.get("a/b.json")
    with pytest.raises(FileNotFoundError):
        store.get_file("a/b.json", tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "big"]


def test_an_empty_prefix_lists_as_empty(address):
    assert ObjectStore(f"{PREFIX}/nothing").list() == {}


def test_a_check_leaves_nothing_and_tells_the_clock_of_the_store(server: S3Server, address):
    assert ObjectStore(f"{PREFIX}/checked").check() > 1e9
    assert server.objects("some/where/checked") == {}


def test_a_store_that_fails_every_third_request_is_outlasted(server: S3Server, through):
    proxy = through(lambda number, method, path: 503 if number % 3 == 0 else None)
    store = ObjectStore(f"{PREFIX}/shaky", first_wait_s=0.01)
    for index in range(12):
        store.put(f"{index}", str(index).encode())
    assert [store.get(f"{index}") for index in range(12)] == [str(index).encode() for index in range(12)]
    assert len(store.list()) == 12
    assert len(proxy.requests) > 40


def test_patience_ends_and_every_try_is_named_in_the_log(through, caplog):
    through(lambda number, method, path: 503)
    store = ObjectStore(f"{PREFIX}/away", tries=2, first_wait_s=0.01)
    with pytest.raises(StorageAway, match=r"storage s3://\S+ did not write x in 2 tries over \d+ s: ") as caught:
        store.put("x", b"x")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert [record.getMessage().count("trying again in 0.0") for record in caplog.records] == [1]


def test_no_permission_is_refused_at_once(through):
    proxy = through(lambda number, method, path: 403)
    with pytest.raises(StorageError, match=r"be ours to use, got .*ACCESS_DENIED.*; give this process") as caught:
        ObjectStore(f"{PREFIX}/denied").check()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert len(proxy.requests) == 1


def test_a_missing_bucket_is_refused_at_once(address):
    with pytest.raises(StorageError, match=r"NO_SUCH_BUCKET.*; create the bucket, or name another one$"):
        ObjectStore("s3://no-such-bucket/x").check()


def test_a_store_that_cannot_be_reached_is_refused_by_a_check(through):
    proxy = through(lambda number, method, path: None)
    proxy.stop()
    with pytest.raises(StorageError, match=r"must answer, got .*; check the address and the network$"):
        ObjectStore(f"{PREFIX}/x", tries=1).check()


@pytest.mark.parametrize("uri", ["nope://x/y", "memory://x", "http://x/y"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(uri: str):
    with pytest.raises(StorageError, match=r"^storage must be a path or begin with s3:// or gs://, got "):
        ObjectStore(uri)


def test_addresses_keep_their_options():
    uri = "s3://b/p?region=x"
    assert child(uri, "run") == "s3://b/p/run?region=x"
    assert parent(child(uri, "run")) == uri
    assert last_name(child(uri, "run")) == "run"
    assert is_uri(uri)
    assert not is_uri(Path("runs"))
    assert not is_uri("runs/x")
