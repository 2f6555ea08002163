"""`tandem plan` from its options to what it prints and writes, and the lines that set its winner up."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from tandem.cli.__main__ import app
from tandem.cli.plan import DeviceChoice, Machine, UpOptions, make_plan
from tandem.cli.sim_serve.costs import EngineCosts, WorkerShape
from tandem.cli.sim_serve.model_file import CostModel, read_model, to_json
from tandem.cli.sizing.advice import Setup, compose_file, compose_line, up_line
from tandem.cli.sizing.candidates import Arrangement, Candidate
from tandem.cli.sizing.datasheet import MARK, Worker, costs_of
from tandem.cli.sizing.gpus import gpu_named
from tandem.cli.sizing.models import shape_of
from tandem.core.policies import PolicyName
from tests.support.lines import load_settings, parse
from tests.unit.sizing.test_datasheet import LLAMA_8B

ROOT = Path(__file__).resolve().parents[3]
QUICK = ("--requests", "60", "--deep", "1", "--page-sizes", "16", "--policies", "least_load", "--processes", "1")


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


def plan(*options: str) -> Result:
    return CliRunner().invoke(app, ["plan", *QUICK, *options])


def test_a_plan_is_a_table_a_page_a_file_for_compose_and_a_line(model: str, tmp_path: Path) -> None:
    page, compose = tmp_path / "plan.html", tmp_path / "plan.yml"
    load = ("--prompt-tokens", "2000", "--new-tokens", "100", "--workers", "2-3", "--gpu-price-per-hour", "2")
    said = plan("--model", model, "--gpu", "h100", *load, "--html", str(page), "--compose", str(compose))
    assert said.exit_code == 0, said.output
    rows = [line.split() for line in said.output.splitlines()]
    shown = {row[1] for row in rows if len(row) > 8 and row[0] in ("2", "3")}
    assert {"1:1", "2:1"} <= shown
    assert any(row[-1:] == ["winner"] for row in rows)
    assert f"H100, tp 1: {MARK}" in said.output
    line = next(text.strip() for text in said.output.splitlines() if text.strip().startswith("tandem up "))
    parse(line)
    assert f"--model {model} " in line
    assert "docker compose -f docker-compose.yml -f plan.yml --profile gpu up" in said.output
    assert set(yaml_of(compose.read_text())["services"]) >= {"prefill-gpu", "decode-gpu"}
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "<title>Splits of " in text
    assert MARK in text
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_json_says_the_same_each_time(model: str) -> None:
    options = ("--model", model, "--gpu", "L40S", "--workers", "3", "--workload", "chat", "--json")
    first, again = plan(*options), plan(*options)
    assert first.exit_code == 0, first.output
    assert first.output == again.output
    found: dict[str, Any] = json.loads(first.output)
    assert found["schema"] == "tandem.plan/1"
    assert MARK in found["costs"]["source"]
    assert found["held_share"] > 0.3
    assert next(one for one in found["findings"] if one["arrangement"] == found["winner"]["arrangement"])["frontier"]
    assert {one["arrangement"] for one in found["findings"]} | {one["arrangement"] for one in found["skipped"]} == {
        *("1:2", "2:1", "3 unified")
    }
    assert found["winner"]["per_worker_per_s"] == pytest.approx(found["winner"]["goodput_per_s"] / 3)


def test_a_trace_is_planned_for(model: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:15:{second:02}.0000000,{900 + second},20\n" for second in range(30))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    said = plan("--model", model, "--gpu", "A100-80", "--workers", "2", "--trace", str(trace), "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.output)["mean_new_tokens"] == 20


def test_the_costs_that_were_planned_with_are_the_simulators_own_file(model: str, tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    said = plan("--model", model, "--gpu", "H100", "--workers", "2", "--costs", str(costs))
    assert said.exit_code == 0, said.output
    assert read_model(costs) == costs_of(Worker(gpu_named("H100"), shape_of(LLAMA_8B)))


def test_measured_costs_take_the_place_of_the_datasheet(tmp_path: Path) -> None:
    costs = tmp_path / "costs.json"
    costs.write_text(
        to_json(
            CostModel(EngineCosts(prefill_us_per_token=50), shape=WorkerShape(kv_tokens=10_000), source="measured here")
        )
    )
    said = plan("--calibrated", str(costs), "--workers", "2")
    assert said.exit_code == 0, said.output
    assert "Costs: measured here." in said.output
    assert MARK not in said.output
    small = plan("--calibrated", str(costs), "--prompt-tokens", "10000")
    assert small.exit_code != 0
    assert "never fits" in str(small.exception)


def test_the_cost_of_a_token_is_what_its_gpus_cost_while_it_is_made(model: str) -> None:
    options = ("--model", model, "--gpu", "h100", "--workers", "2", "--tp", "2", "--new-tokens", "50", "--json")
    said = plan(*options, "--gpu-price-per-hour", "3")
    best = json.loads(said.output)["winner"]
    assert best["cost_per_million_new_tokens"] == pytest.approx(3 * 2 * 2 / 3600 / (best["goodput_per_s"] * 50) * 1e6)


def test_workers_load_the_folder_of_a_config_or_what_is_said(model: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps(LLAMA_8B))
    where = ("--gpu", "H100", "--workers", "2", "--new-tokens", "2")
    for options, expected in (
        (("--model", f"{model}/config.json"), model),
        (("--model", f"{model}/other.json"), "MODEL"),
        (("--model", model, "--model-path", "meta-llama/Llama-3.1-8B"), "meta-llama/Llama-3.1-8B"),
    ):
        said = plan(*where, *options)
        assert f"--device cuda --model {expected} " in said.output


def test_what_no_set_up_can_serve_is_said_and_ends_with_1(model: str) -> None:
    where = ("--model", model, "--gpu", "L4", "--workers", "2")
    slow = plan(*where, "--slo", "ttft=1ms")
    assert (slow.exit_code, "keeps the SLO, at any rate" in slow.output) == (1, True)
    much = plan(*where, "--rate", "1000000", "--slo", "ttft=10s,itl=1s")
    assert (much.exit_code, "keeps 1e+06 requests/s" in much.output) == (1, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--model and --gpu are needed"),
        (("--workers", "8-2"), "not like 8 or 2-8"),
        (("--workers", "65"), "1..64"),
        (("--workers", "many"), "whole number, 1..64"),
        (("--page-sizes", "16,0"), "1..65536"),
        (("--policies", "cache_aware"), "share too little for a cache"),
        (("--policies", "consistent_hash", "--workload", "rag"), "no request of this load is of a session"),
        (("--slo", "ttft=soon"), "not like ttft=1s"),
        (("--gpu", "abacus"), "there are A100-80"),
        (("--tp", "3"), "does not share 32 heads"),
    ],
)
def test_what_is_not_allowed_is_named(model: str, options: tuple[str, ...], says: str) -> None:
    given = ("--model", model, "--gpu", "H100", *options) if options else ()
    said = plan(*given)
    assert said.exit_code != 0
    assert says in str(said.exception)


GATEWAYS = {
    "least_load": {},
    "prefix_hash": {"TANDEM_GATEWAY_PREFILL_POLICY": "prefix_hash"},
    "round_robin": {"TANDEM_GATEWAY_UNIFIED_POLICY": "round_robin"},
    "cache_aware": {
        "TANDEM_GATEWAY_PREFILL_POLICY": "cache_aware",
        "TANDEM_GATEWAY_UNIFIED_POLICY": "cache_aware",
        "TANDEM_GATEWAY_UNIFIED_MAX_PROMPT_TOKENS": "512",
    },
    "least_cost": {"TANDEM_GATEWAY_PREFILL_POLICY": "least_cost", "TANDEM_GATEWAY_DECODE_POLICY": "least_cost"},
}
"""What is set at the gateway, by the policy of a set-up."""
SETUPS = [
    Setup(Candidate(Arrangement(2, 3), PolicyName.LEAST_LOAD, 16), "Qwen/Qwen3-8B", 1, 256, 8192),
    Setup(Candidate(Arrangement(1, 2), PolicyName.PREFIX_HASH, 64), "/models/with a space", 2, 128, 4096),
    Setup(Candidate(Arrangement(unified=4), PolicyName.ROUND_ROBIN, 1), "Qwen/Qwen3-8B", 1, 256, 8192),
    Setup(Candidate(Arrangement(2, 1, 1), PolicyName.CACHE_AWARE, 16, 512), "Qwen/Qwen3-8B", 1, 256, 8192),
    Setup(Candidate(Arrangement(2, 1), PolicyName.LEAST_COST, 16), "Qwen/Qwen3-8B", 1, 256, 8192),
]


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_the_line_of_tandem_up_sets_the_winner_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the parser, and through what `tandem up` makes of such options, to settings that services take."""
    line = up_line(setup)
    parse(line)
    words, counts = shlex.split(line), setup.candidate.arrangement
    assert f"{counts.prefill}:{counts.decode}" == words[words.index("--ratio") + 1]
    options = UpOptions(
        prefill=counts.prefill,
        decode=counts.decode,
        unified=counts.unified,
        models=(words[words.index("--model") + 1],),
        tp=int(words[words.index("--tp") + 1]) if "--tp" in words else 1,
        page_size=int(words[words.index("--page-size") + 1]),
        device=DeviceChoice.CUDA,
        env=tuple(value for name, value in pairwise(words) if name == "--env"),
    )
    gpus = tuple(map(str, range(counts.workers * setup.tp)))
    found = make_plan(options, Machine(16, gpus), {})
    assert len(found.workers) == counts.workers
    used = [one.env["CUDA_VISIBLE_DEVICES"].split(",") for one in found.workers]
    assert sorted(gpu for one in used for gpu in one) == sorted(gpus), "a GPU for every rank"
    for process in (*found.workers, found.gateway):
        sent = {
            name: value for name, value in process.env.items() if name.startswith(("TANDEM_SGLANG", "TANDEM_GATEWAY"))
        }
        assert load_settings(sent, monkeypatch) > 0
    assert all(one.env["TANDEM_SGLANG_MAX_RUNNING"] == str(setup.max_running) for one in found.workers)
    named = {name: value for name, value in found.gateway.env.items() if name.endswith(("_POLICY", "PROMPT_TOKENS"))}
    assert named == GATEWAYS[str(setup.candidate.policy.value)]


class InPlace(list[Any]):
    """What Compose is to put in place of what is there, not behind it."""


class Override(yaml.SafeLoader):
    """Knows Compose's own tag."""


Override.add_constructor("!override", lambda loader, node: InPlace(loader.construct_sequence(node, deep=True)))


def yaml_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(text, Override)
    return found


@pytest.mark.parametrize("setup", SETUPS[:2], ids=str)
def test_the_file_for_compose_gives_every_worker_gpus_of_its_own(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    ours = yaml.safe_load(text)["services"]
    services, counts, gpus = yaml_of(compose_file(setup))["services"], setup.candidate.arrangement, list[str]()
    workers = {name: one for name, one in services.items() if name != "gateway"}
    assert len([name for name in workers if name.startswith("prefill")]) == counts.prefill
    assert len(workers) == counts.workers
    for name, service in services.items():
        base = service["extends"]["service"] if "extends" in service else name
        assert base in ours
        needed = {"TANDEM_GATEWAY_MODEL_PATH": setup.model} if name == "gateway" else {}
        assert load_settings(needed | service["environment"], monkeypatch) > 0
        if name != "gateway":
            assert ours[base]["profiles"] == ["gpu"]
            devices = service["deploy"]["resources"]["reservations"]["devices"]
            assert isinstance(devices, InPlace)
            gpus += devices[0]["device_ids"]
    assert sorted(gpus) == [str(gpu) for gpu in range(counts.workers * setup.tp)]
    variable, *words = shlex.split(compose_line(setup, "plan.yml"))
    assert variable == f"MODEL_PATH={setup.model}"
    assert "${MODEL_PATH:-/models/${MODEL:-" in text
    assert words[:6] == ["docker", "compose", "-f", "docker-compose.yml", "-f", "plan.yml"]


@pytest.mark.parametrize(
    ("model", "parent"),
    [("/data/m/Qwen3-8B", "/data/m"), ("Qwen3-8B", "./"), ("models/Qwen3-8B/", "./models"), ("../Qwen3-8B", "./..")],
)
def test_a_folder_of_this_machine_is_given_to_the_containers(model: str, parent: str) -> None:
    line = compose_line(replace(SETUPS[0], model=model, local=True), "plan.yml")
    assert shlex.split(line)[:2] == [f"MODELS_DIR={parent}", "MODEL=Qwen3-8B"]
    assert "${MODELS_DIR:-./models}" in (ROOT / "docker-compose.yml").read_text()


def test_compose_has_no_unified_workers_on_gpus() -> None:
    assert compose_file(SETUPS[2]) == ""
