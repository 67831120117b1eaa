"""Monitors of connections: closing one never stops libzmq's own thread."""

from __future__ import annotations

import random
import socket as bsd
import threading
import time

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
            assert pull.poll(10_000), "libzmq's thread is stuck"
            pull.recv()
    ended.set()
    thread.join(10.0)
    server.close()
    context.term()
