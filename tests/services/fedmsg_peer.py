"""The real fedmsg, run in its own environment: `python fedmsg_peer.py publish SETTINGS`, or a command of fedmsg.

    python fedmsg_peer.py publish '{…}'       publish what stands in each line of stdin: {"topic": …, "msg": …}
    python fedmsg_peer.py frames '{…}'        send frames as they stand in each line of stdin, in base64, and no others
    python fedmsg_peer.py validate FILE       say of each message in a file (JSON lines) whether fedmsg takes it
    python fedmsg_peer.py run MODULE:FUNCTION ARGUMENT…
    python fedmsg_peer.py hub                 a moksha hub that writes what its one consumer gets to stdout

fedmsg binds to every interface of the machine, whatever is configured; here all it binds is turned to 127.0.0.1. Its
configuration is the folder `fedmsg.d` in the working directory.
"""

import base64
import importlib
import json
import os
import sys
import time
from pathlib import Path

import zmq

_bind = zmq.Socket.bind


def bind_to_loopback(socket, address):
    return _bind(socket, address.replace("tcp://*", "tcp://127.0.0.1").replace("tcp://0.0.0.0", "tcp://127.0.0.1"))


zmq.Socket.bind = bind_to_loopback


def load_config():
    import fedmsg.config

    return fedmsg.config.load_config([], None)


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def publish(settings):
    import fedmsg.core

    config = load_config()
    config.update(settings)
    context = fedmsg.core.FedMsgContext(**config)
    say("ready")
    for line in sys.stdin:
        one = json.loads(line)
        context.publish(topic=one["topic"], msg=one["msg"], modname=one.get("modname", "koji"))
        say("sent")
    context.destroy()


def frames(settings):
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.linger = 1000
    socket.bind(settings["address"])
    say("ready")
    for line in sys.stdin:
        one = json.loads(line)
        if one == "wait":
            socket.recv()  # somebody subscribes
            say("subscribed")
            continue
        socket.send_multipart([base64.b64decode(part) for part in one])
        say("sent")
    socket.close()
    context.term()


def validate(path):
    import fedmsg.crypto

    config = load_config()
    with Path(path).open() as file:
        for line in file:
            try:
                verdict = fedmsg.crypto.validate(json.loads(line), **config)
            except Exception as error:
                verdict = f"{type(error).__name__}: {error}"
            say(json.dumps(verdict))


def hub():
    import fedmsg.consumers
    from moksha.hub import main

    class Echo(fedmsg.consumers.FedmsgConsumer):
        topic = "*"
        config_key = "fedbus.tests.echo"

        def consume(self, message):
            say(json.dumps(message["body"]))

    config = load_config()
    config["fedbus.tests.echo"] = True
    config["zmq_subscribe_endpoints"] = ",".join(",".join(one) for one in config["endpoints"].values())
    config["zmq_publish_endpoints"] = ""
    main(options=config, consumers=[Echo], producers=[], framework=False)


def run(where, arguments):
    module, _, name = where.partition(":")
    sys.argv = [name, *arguments]
    getattr(importlib.import_module(module), name)()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    time.tzset()
    kind, *rest = sys.argv[1:]
    if kind in ("publish", "frames"):
        globals()[kind](json.loads(rest[0]))
    elif kind == "validate":
        validate(rest[0])
    elif kind == "hub":
        hub()
    else:
        run(rest[0], rest[1:])
