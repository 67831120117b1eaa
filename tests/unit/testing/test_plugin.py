"""The pytest plugin, in pytest runs of their own."""

from __future__ import annotations

import sys

import pytest

pytest_plugins = ["pytester"]

QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def installed(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("fedbus"), "install this checkout again: pip install -e ."


def test_the_fixtures_work_in_somebody_elses_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import fedbus, pytest

        class Keep(fedbus.Consumer):
            name = "keep"
            topics = ("koji.tag",)
            def __init__(self):
                self.seen = []
            def consume(self, message):
                self.seen.append(message.body["n"])

        @pytest.mark.fedbus(endpoints=("koji.build01", "bodhi.web01"))
        def test_consumer(fedbus_bus):
            keep = Keep()
            fedbus_bus.run(keep)
            fedbus_bus.publish("tag.add", {"n": 1})
            fedbus_bus.publish("tag.add", {"n": 2}, endpoint="bodhi.web01")
            fedbus_bus.wait_consumed()
            assert keep.seen == [1]

        def test_publishing(mock_publishes):
            with mock_publishes(("tag.add", {"n": 1})):
                with fedbus.Bus.open() as bus, bus.publisher("koji.build01") as koji:
                    koji.publish("tag.add", {"n": 1})

        def test_mismatch(mock_publishes):
            with mock_publishes("tag.add"):
                pass
        """
    )
    result = pytester.runpytest_subprocess(*QUIET, "--strict-markers", "-n", "0")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*1 message was expected, 0 published:*", "*1. missing: tag.add*"])


def test_the_fixtures_work_side_by_side_in_several_processes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_bus(fedbus_bus, number):
            assert fedbus_bus.message("thing.change", {"n": number}).body == {"n": number}
            assert len(fedbus_bus.messages()) == 1
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2").assert_outcomes(passed=4)


def test_a_run_that_asks_for_nothing_loads_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            heavy = {"zmq", "jsonschema", "cryptography", "orjson", "tornado", "yaml", "fedbus.bus", "fedbus.errors"}
            assert "fedbus.testing.plugin" in sys.modules
            assert heavy & set(sys.modules) == set()
        """
    )
    # in an interpreter of its own, without the plugins of this environment that load things themselves
    result = pytester.run(sys.executable, "-m", "pytest", *QUIET, "-p", "no:hypothesispytest", "-p", "no:xdist")
    result.assert_outcomes(passed=1)


def test_the_fixtures_and_the_marker_explain_themselves(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*QUIET, "--fixtures", "-q")
    result.stdout.fnmatch_lines(["fedbus_bus*", "*A whole fedbus in this process*", "mock_publishes*"])
    pytester.runpytest_subprocess(*QUIET, "--markers").stdout.fnmatch_lines(["@pytest.mark.fedbus(*"])
