"""`fedbus check` of encrypted links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from fedbus.bus import Bus
from fedbus.cli.check import check
from fedbus.config.init import create
from fedbus.trust import curve


def run(*arguments: str, folder: Path) -> Result:
    if "keys" not in arguments:
        arguments = ("--timeout", "60", *arguments)  # for what answers, on a machine that may be busy
    return CliRunner().invoke(check, arguments, obj={"config": str(folder)})


def shown(result: Result) -> Any:
    return json.loads(result.stdout)


def test_check_shakes_hands_as_a_reader_would_and_says_why_it_is_not_let_in(tmp_path: Path) -> None:
    folder = tmp_path / "bus"
    create(folder, ["koji.build01"], encrypted=True)
    with Bus.open(folder) as opened, opened.publisher("koji.build01"):
        good = run(folder=folder)
        assert good.exit_code == 0, good.output
        assert "curve key koji.build01" in good.output and "1 client in" in good.output
        (folder / "keys" / "link.curve").unlink()
        curve.write_pair(folder / "keys" / "link.curve", curve.make(), "a test")
        refused = run(folder=folder)
        assert refused.exit_code == 5
        assert refused.output.count("it refuses this host") == 2
        file = folder / "20-endpoints.yaml"
        file.write_text("".join(line for line in file.open() if "curve:" not in line))
        plain = run(folder=folder)
        assert plain.exit_code == 5
        # of two ports; on a busy machine one of them may only say that the handshake ended
        assert "has no `curve` key" in plain.output


def test_check_keys_tells_a_key_of_links_that_is_not_that_of_the_endpoints_file(tmp_path: Path) -> None:
    folder = tmp_path / "bus"
    create(folder, ["koji.build01"], encrypted=True)
    path = folder / "keys" / "koji.build01.curve"
    other = curve.make()
    curve.write_pair(path, other, "a test")
    result = run("keys", folder=folder)
    assert result.exit_code == 4
    assert other.public in result.output
    path.chmod(0o644)
    (folder / "keys" / "clients").unlink()
    states = {one["name"]: one["state"] for one in shown(run("keys", "--json", folder=folder))["results"]}
    assert states["curve key koji.build01"] == states["links"] == "critical"
