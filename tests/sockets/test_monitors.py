"""What libzmq itself does not survive: monitors closed too early, heartbeats of a reader that is busy."""

from __future__ import annotations

import random
import socket as bsd
import subprocess
import sys
import threading
import time

import pytest
import zmq

from fedbus.transport import sockets


def test_closing_a_connection_as_it_ends_leaves_all_others_alone() -> None:
    chance = random.Random(1)
    server = bsd.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def hang_up() -> None:
        server.settimeout(0.1)
        while not ended.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            ended.wait(chance.uniform(0.0, 0.002))
            connection.close()

    thread = threading.Thread(target=hang_up)
    thread.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    with context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
        push.linger = 0
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        for _ in range(200):
            one = sockets.fetch_socket(context, address, frame_bytes=10_000)
            pair = sockets.monitor(context, one, zmq.EVENT_DISCONNECTED)
            until = time.monotonic() + chance.uniform(0.0, 0.003)
            while time.monotonic() < until:
                pass
            sockets.close_monitored(one, pair)
            push.send(b"still there", zmq.NOBLOCK)
            assert pull.poll(60_000), "libzmq's thread is stuck"
            pull.recv()
    ended.set()
    thread.join(60.0)
    server.close()
    context.term()


@pytest.mark.fault("F7")
def test_who_connects_sends_no_heartbeats_as_libzmq_would_end_a_busy_reader_over_them() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    live = sockets.subscribe_socket(context, hwm=10, endpoints=1, frame_bytes=10_000)
    fetching = sockets.fetch_socket(context, "tcp://127.0.0.1:1", frame_bytes=10_000)
    assert [one.get(zmq.HEARTBEAT_IVL) for one in (live, fetching)] == [0, 0]
    live.close(0)
    fetching.close(0)
    context.term()


# without heartbeats; with them, of 200 ms, this ends in the first seconds
SLOW = """
import sys, threading, time, zmq
from fedbus.transport import sockets

there, here = zmq.Context(), zmq.Context()
publish = there.socket(zmq.PUB)
address = f"tcp://127.0.0.1:{publish.bind_to_random_port('tcp://127.0.0.1')}"
reader = sockets.subscribe_socket(here, hwm=100, endpoints=1, frame_bytes=100_000)
reader.subscribe(b"")
if sys.argv[1] == "heartbeats":
    reader.set(zmq.HEARTBEAT_IVL, 200)
    reader.set(zmq.HEARTBEAT_TIMEOUT, 200)
publish.set(zmq.HEARTBEAT_IVL, 200)
publish.set(zmq.HEARTBEAT_TIMEOUT, 200)
sockets.connect(reader, address, server="", pair=None)

def send():
    while True:
        for _ in range(50):
            publish.send(b"x" * 5000)
        time.sleep(0.002)

threading.Thread(target=send, daemon=True).start()
for _ in range(6):
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        if reader.poll(10):
            reader.recv(zmq.NOBLOCK)
    time.sleep(0.7)
    for _ in range(55):
        if reader.poll(0):
            reader.recv(zmq.NOBLOCK)
sys.stdout.write("alive")
sys.stdout.flush()
import os
os._exit(0)
"""


@pytest.mark.fault("F7")
def test_a_reader_that_is_busy_for_long_is_alive_when_it_reads_on() -> None:
    done = subprocess.run([sys.executable, "-c", SLOW, "none"], capture_output=True, timeout=100, check=False)
    assert done.stdout == b"alive", done.stderr.decode()
