"""A history in a real PostgreSQL that restarts, refuses, runs full and gets in the way: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fedbus import Bus, HistoryQuery, HistoryStore, HistoryUnavailable, open_history
from fedbus.config.init import free_ports
from tests.network.proxy import Proxy
from tests.support import need_program, wait_until
from tests.unit.history.postgres_server import Server, server
from tests.unit.history.press import Press
from tests.unit.history.stores import Open, opener

PATIENCE = 120.0
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as one:
        one.start()
        yield one


@pytest.fixture(scope="module")
def press(tmp_path_factory: pytest.TempPathFactory) -> Press:
    return Press(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture
def url(postgres: Server) -> str:
    schema = f"test{next(_NUMBERS)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{postgres.url}&options=-csearch_path%3D{schema}"


@pytest.fixture
def open_it(url: str, press: Press) -> Open:
    return opener(url, press.clock)


def bodies(start: int, count: int) -> list[dict[str, object]]:
    return [{"n": number} for number in range(start, start + count)]


def numbers(store: HistoryStore) -> list[int]:
    return [one.message().body["n"] for one in store.find(HistoryQuery())]


@pytest.mark.fault("F18")
@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL])
def test_a_server_that_restarts_is_waited_for_and_each_message_is_there_once(postgres, open_it, press, how):
    first, second = press.batch(bodies(0, 20)), press.batch(bodies(20, 20))
    with open_it() as store:
        store.write(first)
        postgres.stop(how)
        with pytest.raises(HistoryUnavailable):
            store.write(first + second)
        with pytest.raises(HistoryUnavailable):
            numbers(store)
        (postgres.data / "postmaster.pid").unlink(missing_ok=True)
        wait_until(lambda: _started(postgres), PATIENCE, "a restart")
        assert store.write(first + second).new == 20
        assert numbers(store) == list(range(40))
        assert list(store.faults()) == []


def _started(postgres: Server) -> bool:
    try:
        postgres.start()
    except AssertionError:  # what a kill has left holds it up for a moment
        postgres.stop()
        return False
    return True


@pytest.mark.fault("F18")
def test_a_connection_that_was_ended_is_made_anew(postgres, open_it, press):
    messages = press.batch(bodies(0, 4))
    with open_it() as store:
        store.write(messages[:2])
        with psycopg.connect(postgres.url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE application_name = 'fedbus history'"
            )
        with pytest.raises(HistoryUnavailable):
            store.write(messages)
        assert store.write(messages).new == 2
        assert numbers(store) == [0, 1, 2, 3]


def test_two_writers_at_a_time_keep_each_message_once_whatever_the_default_isolation(postgres, url, press):
    strict = opener(f"{url}%20-cdefault_transaction_isolation%3Dserializable", press.clock)
    with strict() as one, strict() as other:
        lots = [press.batch(bodies(start, 5)) for start in range(0, 200, 5)]
        results: list[int] = []

        def write(store: HistoryStore, turn: int) -> None:
            results.extend(store.write(lot).new for lot in lots[turn:] + lots[:turn])

        threads = [threading.Thread(target=write, args=(store, 20 * turn)) for turn, store in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert (len(results), sum(results)) == (80, 200)
        assert sorted(numbers(one)) == list(range(200))
        assert list(one.faults()) == []


@pytest.mark.fault("F18")
@pytest.mark.parametrize("code", ["40001", "40P01"])  # serialization_failure, deadlock_detected
@pytest.mark.parametrize("times", [2, 5])
def test_a_transaction_that_another_one_got_in_the_way_of_is_tried_again(open_it, url, press, code, times):
    messages = press.batch(bodies(0, 6))
    with open_it() as store:
        store.write(messages[:2])
        with psycopg.connect(url, autocommit=True) as other:
            # what a sequence has counted is not rolled back
            other.execute("CREATE SEQUENCE tries")
            other.execute(
                "CREATE FUNCTION hinder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF nextval('tries') <= {times} THEN RAISE EXCEPTION 'in the way' USING ERRCODE = '{code}'; END IF; "
                "RETURN NEW; END $$"
            )
            other.execute(
                "CREATE TRIGGER hinder BEFORE UPDATE ON fedbus_history_tally FOR EACH ROW EXECUTE FUNCTION hinder()"
            )
        if times > 2:
            with pytest.raises(HistoryUnavailable, match="in the way"):
                store.write(messages)
        assert store.write(messages).new == 4
        assert numbers(store) == list(range(6))
        assert list(store.faults()) == []


@pytest.mark.fault("F18")
def test_a_statement_that_takes_too_long_is_given_up_and_written_later(postgres, open_it, press, url):
    messages = press.batch(bodies(0, 3))
    with open_it() as store:
        store.write(messages[:1])
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE fedbus_history_message")
            store._connection.execute("SET statement_timeout = 100")  # type: ignore[attr-defined]
            with pytest.raises(HistoryUnavailable, match="too long"):
                store.write(messages)
        assert store.write(messages).new == 2


@pytest.mark.fault("F18")
def test_a_full_disk_is_told_and_heals_by_itself(press):
    need_program("mount")
    with server() as one:
        _on_a_small_disk(one)
        try:
            one.start("wal_level=minimal", "max_wal_senders=0", "min_wal_size=2MB", "max_wal_size=4MB")
            with opener(one.url, press.clock)() as store:
                store.write(press.batch(bodies(0, 10)))
                ballast = one.data / "ballast"
                _fill(ballast)
                more = press.batch([{"n": number, "text": "x" * 20_000} for number in range(10, 200)])
                with pytest.raises(HistoryUnavailable):
                    store.write(more)
                    store.write(press.batch([{"n": -1, "text": "x" * 900_000}] * 20))
                ballast.unlink()
                wait_until(lambda: _writes(store, more), PATIENCE, "the store to take it")
                assert sorted(set(numbers(store)) - {-1}) == list(range(200))
                assert list(store.faults()) == []
        finally:
            one.stop()
            subprocess.run(["umount", one.data], check=False, timeout=PATIENCE)


def _on_a_small_disk(one: Server) -> None:
    """Put the data of *one* on a tmpfs of its own."""
    moved = one.folder / "moved"
    one.data.rename(moved)
    one.data.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "none", one.data], check=False, capture_output=True, timeout=PATIENCE
    )
    if mounted.returncode:
        moved.rename(one.data) if not any(one.data.iterdir()) and one.data.rmdir() is None else None
        pytest.skip("no right to mount here")
    state = moved.stat()
    shutil.copytree(moved, one.data, dirs_exist_ok=True, symlinks=True)
    subprocess.run(["chown", "-R", f"{state.st_uid}:{state.st_gid}", one.data], check=True, timeout=PATIENCE)
    one.data.chmod(0o700)


def _fill(path: Path) -> None:
    """Leave some kilobytes."""
    free = shutil.disk_usage(path.parent).free
    with path.open("wb") as file:
        file.write(bytes(max(0, free - 200_000)))


def _writes(store: HistoryStore, messages: list[object]) -> bool:
    try:
        store.write(messages)  # type: ignore[arg-type]
    except HistoryUnavailable:
        return False
    return True


def test_a_hub_stores_there_and_the_command_finds_it(url, bus_folder, fedbus, spawn):
    (bus_folder / "50-history.yaml").write_text(
        "consumers: {history: {use: fedbus_consumers.history, settings: {store: '${HISTORY_URL}'}}}\n"
    )
    (bus_folder / "50-history.yaml").chmod(0o600)
    environment = {"HISTORY_URL": url}
    with Bus.open(_settings(bus_folder, environment)) as bus, bus.publisher("koji.build01") as koji:
        for number in range(20):
            koji.enqueue("package.build.start", {"n": number, "package": "bash"})
        koji.flush()
    assert fedbus("history", "count", environment=environment).returncode == 1  # no tables yet
    hub = spawn("hub", config=bus_folder, environment=environment)
    with open_history(url, writable=True) as store:
        wait_until(lambda: store.count(HistoryQuery()) == 20 or hub.code is not None, PATIENCE, "all messages")
    hub.send(signal.SIGTERM)
    assert hub.wait() == 0, hub.err
    done = fedbus("history", "count", "--package", "bash", "--json", environment=environment)
    assert (done.returncode, done.stdout) == (0, '{"count": 20}\n'), done.stderr
    done = fedbus("history", "verify", environment=environment)
    assert (done.returncode, done.stdout) == (0, "20 good, 0 refused, 0 not verifiable\n"), done.stderr
    done = fedbus("history", "count", "--store", "postgresql://fedbus:secret@127.0.0.1:1/x", environment=environment)
    assert done.returncode == 5
    assert "secret" not in done.stderr


NOTE = """
import fedbus

class Note(fedbus.Consumer):
    topics = ("koji",)
    since = "beginning"

    def __init__(self, path):
        self.path = path

    def consume(self, message):
        with open(self.path, "a") as file:
            file.write(f"{message.body['n']}\\n")
"""


@pytest.mark.fault("F25")
def test_a_server_that_is_down_slow_or_talks_nonsense_holds_up_nobody_else_and_each_message_is_stored_once(
    bus_folder, spawn, tmp_path, monkeypatch
):
    noted = tmp_path / "noted.txt"
    noted.touch()
    consumers = bus_folder / "consumers"
    consumers.mkdir(mode=0o700)
    (consumers / "note.py").write_text(NOTE)
    (consumers / "note.py").chmod(0o600)
    (port,) = free_ports(1)
    monkeypatch.setenv("PGPORT", str(port))  # of its Unix socket too
    with server() as far, Proxy({"postgres": port}) as link:
        far.start("listen_addresses=127.0.0.1", f"port={port}")
        url = f"postgresql://fedbus@127.0.0.1:{link.ports['postgres']}/postgres"
        (bus_folder / "50-history.yaml").write_text(
            "hub: {folder: consumers, retry_pause: 100ms}\nconsumers:\n"
            f"  history: {{use: fedbus_consumers.history, since: beginning, settings: {{store: '{url}'}}}}\n"
            f"  note: {{use: note.py, settings: {{path: '{noted}'}}}}\n"
        )
        (bus_folder / "50-history.yaml").chmod(0o600)
        hub = spawn("hub", config=bus_folder)
        hub.wait_for("ready")
        last = 0
        with Bus.open(bus_folder) as bus, bus.publisher("koji.build01") as koji, open_history(far.url) as store:
            for mode, number in (("refuse", 0), ("garbage", 0), ("hang", 0), ("half-open", 0), ("rate", 20_000)):
                link.set(mode, number)
                if mode == "rate":
                    link.set("reset")  # in the middle of what is under way
                for _ in range(200):
                    last += 1
                    koji.enqueue("package.build.start", {"n": last})
                koji.flush()
                # whoever does not need the server has got all of it meanwhile
                wait_until(lambda last=last: len(noted.read_text().split()) == last, PATIENCE, f"{last} noted, {mode}")
                if mode == "half-open":
                    link.set("reset")
                link.set("pass")
                wait_until(lambda last=last: store.count(HistoryQuery()) == last, PATIENCE, f"{last} stored, {mode}")
            assert numbers(store) == list(range(1, last + 1))
            assert list(store.faults()) == []
        hub.send(signal.SIGTERM)
        assert hub.wait() == 0, hub.err
    assert noted.read_text().split() == [str(number) for number in range(1, last + 1)]
    assert "Traceback" not in hub.err


def _settings(folder: Path, environment: dict[str, str]):
    from fedbus.config.settings import Settings

    return Settings.load(folder, environment)


@pytest.mark.parametrize(
    "store",
    [
        "postgresql://fedbus:geheim@[::1/history",
        "postgresql://fedbus:geheim@127.0.0.1:1/history",
        "postgresql://fedbus@127.0.0.1:1/history?sslmode=disable&password=geheim&sslpassword=geheim",
        "postgres://127.0.0.1:1/history?password=geheim",
    ],
)
def test_no_password_of_a_store_is_shown_in_an_error(store: str) -> None:
    with pytest.raises(HistoryUnavailable) as caught, open_history(store):
        pass
    assert "postgres" in str(caught.value) and "history" in str(caught.value)
    assert "geheim" not in str(caught.value)
