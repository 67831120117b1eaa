"""The alarms that are shipped: Prometheus takes them, their metrics exist, and they go off when they should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import need_program

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "doc" / "examples" / "alerts.yaml"


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return list(group["rules"])


def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run(
        [need_program("promtool"), "check", "rules", ALERTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(rules())} rules found" in done.stdout


def test_every_metric_that_they_ask_for_is_one_of_ours() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "fedbus").rglob("*.py"))
    for rule in rules():
        for name in re.findall(r"\b(?:fedbus|process)_[a-z_]+", rule["expr"]):
            # some names are put together from a prefix and a word
            parts = [name] + [name.removeprefix(one) for one in (
                "fedbus_check_", "fedbus_relay_", "fedbus_publisher_", "fedbus_endpoint_", "process_"
            ) if name.startswith(one)]  # fmt: skip
            assert any(f'"{part}"' in source for part in parts), f"{rule['alert']}: {name}"


def test_each_alarm_has_a_row_that_says_what_to_do() -> None:
    page = (ROOT / "doc" / "operations.rst").read_text("utf-8")
    for rule in rules():
        assert f"``{rule['alert']}``" in page, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"]["summary"]


CASES = {
    "FedbusDown": ('up{job="fedbus-hub",instance="a"}', "0x30"),
    "FedbusHubNotReady": ('fedbus_hub_ready{instance="a"}', "0x30"),
    "FedbusMessagesLost": ('fedbus_endpoint_lost_total{endpoint="koji.build01"}', "0x15 1x15"),
    "FedbusDeadLetters": ('fedbus_consumer_gave_up_total{consumer="irc"}', "0x15 1x15"),
    "FedbusRefused": ('fedbus_refused_total{reason="signature"}', "0x15 5x15"),
    "FedbusConsumerBehind": ('fedbus_consumer_lag_messages{consumer="irc"}', "20x30"),
    "FedbusConsumerFarBehind": ('fedbus_consumer_lag_messages{consumer="history"}', "20000x30"),
    "FedbusClock": ('fedbus_endpoint_clock_skew_seconds{endpoint="koji.build01"}', "-90x30"),
    "FedbusKeyExpires": ('fedbus_check_expires_seconds{what="certificate koji.build01"}', "500000x30"),
    "FedbusRestarts": ('process_start_time_seconds{job="fedbus-hub"}', "1+100x30"),
    "FedbusDiskFull": ("fedbus_check_disk_free_percent", "3x30"),
}


def fires(series: str, values: str, alert: str, folder: Path) -> bool:
    """Say whether *alert* is on after twenty minutes of *values*, one a minute."""
    test = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values}],
                # an expression that has no value unless the alarm is on
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": "20m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [need_program("promtool"), "test", "rules", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or "expected" in done.stderr or "exp:" in done.stdout + done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("alert", CASES)
def test_an_alarm_goes_off_when_it_should_and_not_before(alert: str, tmp_path: Path) -> None:
    series, values = CASES[alert]
    assert fires(series, values, alert, tmp_path)
    calm = {"FedbusDown": "1x30", "FedbusHubNotReady": "1x30", "FedbusDiskFull": "50x30", "FedbusClock": "1x30"}
    quiet = calm.get(alert, "10000000x30" if alert == "FedbusKeyExpires" else "0x30")
    assert not fires(series, quiet, alert, tmp_path)
