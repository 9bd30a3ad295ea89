"""The files of deploy/ and the guide: they parse, and name options, paths and metrics that exist."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
import yaml

from moshijax.cli.serve import command
from moshijax.serve import metrics
from moshijax.serve.engine import Engine
from moshijax.serve.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
GUIDE = (ROOT / "docs" / "deployment.md").read_text()
DEFAULTS = {parameter.name: parameter.default for parameter in command.params}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: word, and the rest of its lines."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string((DEPLOY / "moshijax.service").read_text())
    return parser


def parsed(arguments: list[str]) -> dict[str, object]:
    """What `moshijax serve` makes of arguments; click refuses those that it does not have."""
    return command.make_context("serve", list(arguments)).params


def test_the_unit_starts_the_server_with_options_that_it_has_and_waits_for_calls_to_end(unit) -> None:
    program, name, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "moshijax" and name == "serve"
    asked = parsed(arguments)
    assert str(asked["artifact"]).startswith("/srv/") and asked["host"] == "127.0.0.1"
    assert float(unit["Service"]["TimeoutStopSec"]) > asked["drain_seconds"]
    assert unit["Service"].get("MemoryDenyWriteExecute") is None  # compiled programs are written and run


def test_the_image_installs_extras_that_exist_and_starts_the_server() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = {}
    for word, rest in instructions():
        found[word] = rest
    extras = next(rest for word, rest in instructions() if word == "ARG" and rest.startswith("EXTRAS")).split("=")[1]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    asked = parsed([*yaml.safe_load(found["ENTRYPOINT"])[2:], *yaml.safe_load(found["CMD"])])
    assert asked["host"] == "0.0.0.0" and int(found["EXPOSE"]) == asked["port"] == DEFAULTS["port"]
    assert found["USER"] != "root" and found["STOPSIGNAL"] == "SIGTERM"


def test_the_compose_file_waits_longer_than_calls_may_go_on() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    server, proxy = services["moshijax"], services["caddy"]
    asked = parsed(server["command"])
    assert asked["host"] == "0.0.0.0" and asked["proxied"]
    assert float(server["stop_grace_period"].removesuffix("s")) > asked["drain_seconds"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert "ports" not in server  # only the proxy is reached from outside
    assert proxy["environment"]["MOSHIJAX_UPSTREAM"] == f"moshijax:{DEFAULTS['port']}"


def test_the_proxies_pass_on_what_calls_need() -> None:
    nginx = (DEPLOY / "nginx.conf").read_text()
    for directive in (
        f"proxy_pass http://127.0.0.1:{DEFAULTS['port']};",
        "proxy_http_version 1.1;",
        "proxy_set_header Upgrade $http_upgrade;",
        "proxy_set_header Host $http_host;",
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_read_timeout 1h;",
    ):
        assert directive in nginx
    assert DEFAULTS["call_seconds"] == 3600  # what 1h stands for
    assert f"MOSHIJAX_UPSTREAM:127.0.0.1:{DEFAULTS['port']}" in (DEPLOY / "Caddyfile").read_text()


def test_the_guide_names_metrics_options_and_limits_that_exist(loaded) -> None:
    engine = Engine(loaded, 1)
    engine.stats.endings["error"] = 1
    shown = metrics.text(metrics.registry_of(engine)).decode()
    named = set(re.findall(r"\bmoshijax_[a-z_]+", GUIDE))
    assert len(named) > 10
    assert not [name for name in named if not re.search(rf"^{name}[ {{]", shown, re.M)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", GUIDE)) - {"--build-arg", "--batch"} <= known

    (table,) = re.findall(r"^\| limit .*?\n\n", GUIDE, re.M | re.S)
    limits = Settings()
    for shown in (
        f"after {limits.idle_seconds:g} s",
        f"after {limits.stall_seconds:g} s",
        f"{limits.message_bytes // 1024} KiB",
        f"{limits.messages_per_second:g} per second",
        f"{limits.text_prompt} characters",
        f"| {limits.calls_per_minute} |",
    ):
        assert shown in table


def test_the_yaml_of_the_guide_parses_and_kubernetes_waits_for_calls_to_end() -> None:
    rules, pod = (yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.M | re.S))
    assert all(rule["alert"] and rule["expr"] for rule in rules["groups"][0]["rules"])
    (container,) = pod["spec"]["containers"]
    asked = parsed(container["args"])
    assert pod["spec"]["terminationGracePeriodSeconds"] > asked["drain_seconds"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": asked["port"]}
