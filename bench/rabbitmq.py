"""RabbitMQ: rabbitmq-server from Debian, a durable classic queue, pika's blocking connection at both ends.

Messages are persistent and the publisher waits for the confirm of each (what pika's confirm mode does, and what
fedora-messaging does); the consumer has a prefetch of 256 and acknowledges each message. Starts its own node with
its own port mapper, everything on loopback, and stops both by pid.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.body import TOPIC, event
from bench.harness import Session, answers, find_program, free_ports
from bench.role import Arrivals, Departures, Line

QUEUE = "bench"


def measure(session: Session) -> None:
    """Record peer/rabbitmq.

    Raises:
        Skip: There is no rabbitmq-server.
    """
    # Debian's wrapper in /usr/sbin insists on the system's own node; the script behind it does not.
    find_program(["rabbitmq-server"], "rabbitmq-server", session)
    program = find_program(["/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"], "rabbitmq-server", session)
    mapper = find_program(["epmd"], "erlang-base", session)
    port, distribution, mapping = free_ports(3)
    with session.scratch("rabbitmq") as folder, _broker(session, program, mapper, folder, port, distribution, mapping):
        settings = {"port": port, "warm": 200, "count": session.pick(5_000, 1_500)}
        outcome = session.pair("bench.rabbitmq", settings)
    session.record("peer/rabbitmq", outcome.rate, "msg/s")
    session.record("cpu/rabbitmq", outcome.cpu_us, "us/msg")


@contextlib.contextmanager
def _broker(
    session: Session, program: str, mapper: str, folder: Path, port: int, distribution: int, mapping: int
) -> Iterator[subprocess.Popen[bytes]]:
    mapper_folder = folder / "epmd"
    mapper_folder.mkdir()
    plugins = folder / "enabled_plugins"
    plugins.write_text("[].\n")
    environment = {
        "HOME": str(folder),  # where Erlang makes its cookie
        "ERL_EPMD_PORT": str(mapping),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"fedbus-bench-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server instead of waiting beside it
    }
    with (
        session.server(
            [mapper, "-address", "127.0.0.1", "-port", str(mapping)],
            environment={},
            folder=mapper_folder,
            ready=lambda: answers(mapping),
        ),
        session.server([program], environment=environment, folder=folder, ready=lambda: answers(port)) as process,
    ):
        yield process


def _connect(port: int) -> Any:
    import pika

    return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))


def produce(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The publishing process."""
    import orjson
    import pika

    channel = _connect(settings["port"]).channel()
    channel.queue_declare(QUEUE, durable=True)
    channel.confirm_delivery()
    persistent = pika.BasicProperties(delivery_mode=2, content_type="application/json", type=TOPIC)
    departures = Departures(line, settings)
    line.say("ready")
    for phase in (departures.warm_up, departures.measured):
        for number in phase():
            channel.basic_publish("", QUEUE, orjson.dumps(event(number)), persistent, mandatory=True)
    return departures.report()


def consume(line: Line, settings: dict[str, Any]) -> dict[str, Any]:
    """The receiving process."""
    import orjson

    line.wait("ready")
    arrivals = Arrivals(line, settings)
    channel = _connect(settings["port"]).channel()
    channel.basic_qos(prefetch_count=256)

    def take(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        arrivals(orjson.loads(body))
        channel.basic_ack(method.delivery_tag)
        if arrivals.done:
            channel.stop_consuming()

    channel.basic_consume(QUEUE, take)
    arrivals.join()
    channel.start_consuming()
    return arrivals.report()
