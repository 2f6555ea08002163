"""What `tandem up` plans to start."""

from __future__ import annotations

import json

import pytest

from tandem.cli.plan import (
    DeviceChoice,
    EngineChoice,
    Kind,
    Machine,
    ProviderChoice,
    UpOptions,
    in_role,
    make_plan,
    parse_ratio,
)
from tandem.core.errors import ErrorReason, TandemError


@pytest.mark.parametrize(("text", "wanted"), [("1:1", (1, 1)), (" 2:3 ", (2, 3)), ("64:64", (64, 64))])
def test_ratio(text: str, wanted: tuple[int, int]) -> None:
    assert parse_ratio(text) == wanted


@pytest.mark.parametrize("text", ["", "2", "0:1", "1:0", "65:1", "a:b", "1:2:3", "-1:1", "1/2"])
def test_a_bad_ratio_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(TandemError, match="2:3") as caught:
        parse_ratio(text)
    assert (caught.value.reason, caught.value.field) == (ErrorReason.INVALID_ARGUMENT, "ratio")


def test_parsers_are_the_gateways_and_workers_know_where_reasoning_ends(laptop: Machine) -> None:
    plan = make_plan(UpOptions(tool_call_parser="qwen25", reasoning_parser="qwen3"), laptop, {})
    assert plan.gateway.env["TANDEM_GATEWAY_TOOL_CALL_PARSER"] == "qwen25"
    assert plan.gateway.env["TANDEM_GATEWAY_REASONING_PARSER"] == "qwen3"
    for worker in plan.workers:
        assert json.loads(worker.env["TANDEM_SGLANG_ENGINE_ARGS"]) == ["reasoning_parser=qwen3"]


def test_processes_are_named_by_role_and_number(laptop: Machine) -> None:
    plan = make_plan(UpOptions(prefill=2, decode=3), laptop, {})
    names = [process.name for process in plan.processes]
    assert names == ["bootstrap", "prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2", "gateway"]
    assert [process.kind for process in plan.workers] == [Kind.PREFILL] * 2 + [Kind.DECODE] * 3


def test_unified_workers_stand_beside_pairs_or_alone(laptop: Machine) -> None:
    beside = make_plan(UpOptions(unified=2), laptop, {})
    assert [one.name for one in beside.workers] == ["prefill-0", "decode-0", "unified-0", "unified-1"]
    assert beside.workers[-1].env["TANDEM_UNIFIED_WORKER_ID"] == "unified-1"
    prefill, decode = parse_ratio("0:0")
    alone = make_plan(UpOptions(prefill=prefill, decode=decode, unified=1), laptop, {})
    assert [(one.name, one.kind) for one in alone.workers] == [("unified-0", Kind.UNIFIED)]
    with pytest.raises(TandemError, match="--unified"):
        make_plan(UpOptions(prefill=0, decode=0), laptop, {})


def test_each_model_has_its_own_workers(laptop: Machine) -> None:
    options = UpOptions(prefill=1, decode=2, models=("/m/one", "org/two"), model_names=("first",))
    plan = make_plan(options, laptop, {})
    seen = {one.name: [one.env[one.prefixed(key)] for key in ("model_name", "model_path")] for one in plan.workers}
    first, second = ["first", "/m/one"], ["two", "org/two"]
    assert seen == {
        "prefill-0": first,
        "prefill-1": second,
        "decode-0": first,
        "decode-1": first,
        "decode-2": second,
        "decode-3": second,
    }
    assert plan.gateway.env["TANDEM_GATEWAY_MODEL_PATH"] == "/m/one"
    assert json.loads(plan.gateway.env["TANDEM_GATEWAY_TOKENIZERS"]) == {"first": "/m/one", "two": "org/two"}


def test_one_model_alone_is_not_named_to_the_gateway(laptop: Machine) -> None:
    assert "TANDEM_GATEWAY_TOKENIZERS" not in make_plan(UpOptions(), laptop, {}).gateway.env


@pytest.mark.parametrize(
    "given", [{"models": ("/a/x", "/b/x")}, {"models": ("x",), "model_names": ("a", "b")}], ids=["same", "more"]
)
def test_models_need_names_of_their_own(given: dict[str, tuple[str, ...]], laptop: Machine) -> None:
    with pytest.raises(TandemError, match="--model-name") as caught:
        make_plan(UpOptions(**given), laptop, {})
    assert caught.value.field == "model_name"


def test_everything_listens_on_loopback_and_only_the_gateway_has_a_fixed_port(laptop: Machine) -> None:
    plan = make_plan(UpOptions(port=8123), laptop, {})
    assert plan.gateway.env["TANDEM_GATEWAY_PORT"] == "8123"
    assert plan.gateway.env["TANDEM_GATEWAY_ADMIN_ADDRESS"] == "127.0.0.1:0"
    assert plan.bootstrap.env["TANDEM_BOOTSTRAP_PORT"] == "0"
    hosts = {value for process in plan.processes for key, value in process.env.items() if key.endswith("_HOST")}
    assert hosts == {"127.0.0.1"}
    assert {worker.env[worker.prefixed("port")] for worker in plan.workers} == {"0"}
    tellers = (plan.bootstrap, *plan.workers)
    assert {teller.env[teller.prefixed("metrics_address")] for teller in tellers} == {"127.0.0.1:0"}


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (ProviderChoice.AUTO, "cma,tcp"),
        (ProviderChoice.CMA, "cma"),
        (ProviderChoice.TCP, "tcp"),
        (ProviderChoice.VERBS, "verbs"),
    ],
)
def test_provider(choice: ProviderChoice, wanted: str, laptop: Machine) -> None:
    plan = make_plan(UpOptions(provider=choice), laptop, {})
    assert {worker.env["TANDEM_RANK_PROVIDERS"] for worker in plan.workers} == {wanted}


@pytest.mark.parametrize(("workers", "tp", "cores", "threads"), [(2, 1, 2, "1"), (2, 1, 16, "8"), (3, 2, 4, "1")])
def test_ranks_share_the_cores_of_a_cpu(workers: int, tp: int, cores: int, threads: str) -> None:
    plan = make_plan(UpOptions(prefill=1, decode=workers - 1, tp=tp), Machine(cores), {})
    assert {worker.env["TANDEM_SGLANG_THREADS_PER_RANK"] for worker in plan.workers} == {threads}
    assert {worker.env["TANDEM_SGLANG_DEVICE"] for worker in plan.workers} == {"cpu"}


def test_threads_that_the_user_chose_are_kept(laptop: Machine) -> None:
    plan = make_plan(UpOptions(), laptop, {"OMP_NUM_THREADS": "5"})
    assert all("TANDEM_SGLANG_THREADS_PER_RANK" not in worker.env for worker in plan.workers)


def test_workers_take_gpus_in_turn() -> None:
    machine = Machine(8, gpus=("0", "1", "2", "3", "4"))
    plan = make_plan(UpOptions(prefill=1, decode=2, tp=2, device=DeviceChoice.CUDA), machine, {})
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in plan.workers] == ["0,1", "2,3", "0,1"]
    assert plan.one_by_one


@pytest.mark.parametrize(
    ("machine", "device"),
    [
        (Machine(8, gpus=("0", "1")), "cuda"),
        (Machine(8, gpus=("0", "1"), sglang_for_cpu=True), "cpu"),
        (Machine(8), "cpu"),
    ],
)
def test_auto_takes_gpus_that_sglang_can_use(machine: Machine, device: str) -> None:
    plan = make_plan(UpOptions(), machine, {})
    assert {worker.env["TANDEM_SGLANG_DEVICE"] for worker in plan.workers} == {device}


def test_the_cpu_can_be_asked_for_where_there_are_gpus() -> None:
    plan = make_plan(UpOptions(device=DeviceChoice.CPU), Machine(8, gpus=("0", "1")), {})
    assert {worker.env["TANDEM_SGLANG_DEVICE"] for worker in plan.workers} == {"cpu"}


def test_gpus_need_another_sglang_than_that_of_the_cpu() -> None:
    with pytest.raises(TandemError, match="installed for the CPU"):
        make_plan(UpOptions(device=DeviceChoice.CUDA), Machine(8, gpus=("0",), sglang_for_cpu=True), {})


def test_env_moves_a_worker_to_another_gpu() -> None:
    options = UpOptions(env=("prefill-0:CUDA_VISIBLE_DEVICES=1", "decode-0:CUDA_VISIBLE_DEVICES=0"))
    plan = make_plan(options, Machine(8, gpus=("0", "1")), {})
    assert [worker.env["CUDA_VISIBLE_DEVICES"] for worker in plan.workers] == ["1", "0"]


def test_workers_with_a_gpu_each_start_together_and_take_all_its_memory() -> None:
    plan = make_plan(UpOptions(device=DeviceChoice.CUDA), Machine(8, gpus=("0", "1")), {})
    assert not plan.one_by_one
    assert all("TANDEM_SGLANG_ENGINE_ARGS" not in worker.env for worker in plan.workers)


def test_workers_that_share_a_gpu_share_its_memory_unless_the_user_says_otherwise() -> None:
    machine = Machine(8, gpus=("3",))
    shared = make_plan(UpOptions(device=DeviceChoice.CUDA), machine, {})
    assert json.loads(shared.workers[0].env["TANDEM_SGLANG_ENGINE_ARGS"]) == ["mem_fraction_static=0.400"]
    chosen = make_plan(UpOptions(device=DeviceChoice.CUDA, engine_args=("mem-fraction-static=0.3",)), machine, {})
    assert json.loads(chosen.workers[0].env["TANDEM_SGLANG_ENGINE_ARGS"]) == ["mem-fraction-static=0.3"]


@pytest.mark.parametrize("device", [DeviceChoice.CUDA, DeviceChoice.AUTO])
def test_too_few_gpus_are_named(device: DeviceChoice) -> None:
    with pytest.raises(TandemError, match="needs 2 GPUs, this machine shows 1"):
        make_plan(UpOptions(device=device, tp=2), Machine(8, gpus=("0",)), {})


def test_the_mock_takes_engine_args_as_its_settings(laptop: Machine) -> None:
    options = UpOptions(engine=EngineChoice.MOCK, page_size=4, tp=2, engine_args=("decode-us-per-step=5",))
    env = make_plan(options, laptop, {}).workers[0].env
    wanted = {
        "TANDEM_PREFILL_ENGINE": "mock",
        "TANDEM_MOCK_PAGE_SIZE": "4",
        "TANDEM_MOCK_TP_SIZE": "2",
        "TANDEM_MOCK_DECODE_US_PER_STEP": "5",
    }
    assert wanted.items() <= env.items()
    assert not any(key.startswith("TANDEM_SGLANG") for key in env)


@pytest.mark.parametrize("engine", EngineChoice)
def test_a_worker_that_is_or_may_become_decode_is_told_to_keep_prefixes(laptop: Machine, engine: EngineChoice) -> None:
    variable = f"TANDEM_{engine.name}_KEEP_PREFIXES"
    for keep in (True, False):
        workers = make_plan(UpOptions(engine=engine, keep_prefixes=keep), laptop, {}).workers
        assert {one.name for one in workers if one.env.get(variable) == "true"} == (
            {"decode-0", "prefill-0"} if keep else set()
        )


def test_workers_of_sglang_are_told_that_they_may_change_roles(laptop: Machine) -> None:
    for engine, wanted in ((EngineChoice.SGLANG, {"decode-0", "prefill-0"}), (EngineChoice.MOCK, set())):
        workers = make_plan(UpOptions(engine=engine, role_switch=True), laptop, {}).workers
        assert {one.name for one in workers if one.env.get("TANDEM_SGLANG_ROLE_SWITCH") == "true"} == wanted
    assert not any("TANDEM_SGLANG_ROLE_SWITCH" in one.env for one in make_plan(UpOptions(), laptop, {}).workers)


def test_a_worker_in_another_role_keeps_its_devices_its_engine_and_its_settings(laptop: Machine) -> None:
    options = UpOptions(engine=EngineChoice.MOCK, decode=2, env=("decode-1:TANDEM_DECODE_MAX_SUBMITS=7", "X=1"))
    plan = make_plan(options, laptop, {})
    before = next(one for one in plan.workers if one.name == "decode-1")
    after = in_role(before, Kind.PREFILL, "prefill-1")
    assert (after.name, after.kind) == ("prefill-1", Kind.PREFILL)
    assert (after.env["TANDEM_PREFILL_MAX_SUBMITS"], after.env["X"]) == ("7", "1")
    planned = next(one for one in plan.workers if one.name == "prefill-0").env
    assert after.env.keys() - planned.keys() == {"TANDEM_PREFILL_MAX_SUBMITS"}
    assert {name for name, value in planned.items() if after.env[name] != value} == {"TANDEM_PREFILL_WORKER_ID"}
    assert in_role(after, Kind.DECODE, "decode-1") == before


def test_env_goes_to_one_process_or_to_all_and_wins(laptop: Machine) -> None:
    options = UpOptions(env=("decode-0:TANDEM_RANK_PROVIDERS=tcp", "X=1:2=3"))
    plan = make_plan(options, laptop, {})
    by_name = {process.name: process.env for process in plan.processes}
    assert by_name["decode-0"]["TANDEM_RANK_PROVIDERS"] == "tcp"
    assert by_name["prefill-0"]["TANDEM_RANK_PROVIDERS"] == "cma,tcp"
    assert {env["X"] for env in by_name.values()} == {"1:2=3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (UpOptions(env=("decode-9:X=1",)), "there is no process 'decode-9'"),
        (UpOptions(env=("X",)), "not of the form key=value"),
        (UpOptions(engine_args=("page_size",)), "not of the form key=value"),
    ],
)
def test_bad_pairs_are_refused(options: UpOptions, message: str, laptop: Machine) -> None:
    with pytest.raises(TandemError, match=message):
        make_plan(options, laptop, {})
