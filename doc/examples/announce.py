"""Say which builds have finished: ``fedbus hub --consumer announce.py``."""

from fedbus import Consumer, Drop, Message


class AnnounceBuilds(Consumer):
    """Print a line for each build that is complete."""

    topics = ("koji.package.build.complete",)

    def consume(self, message: Message) -> None:
        package = message.body.get("package")
        if package is None:
            raise Drop("it names no package")
        print(f"{package!r} is built", flush=True)
