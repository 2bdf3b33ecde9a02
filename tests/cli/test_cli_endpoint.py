"""serve-trace --endpoint: screen, JSON, refused flags, Ctrl-C, and what can be done later."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import REPOSITORY, Outcome, finish, start, write_trace

from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.results.reader import RunReader, list_runs

Call = Callable[..., Outcome]
_OF_ENGINE = set(RunConfig.__struct_fields__) - set(EndpointConfig.__struct_fields__)


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Start the servers of the endpoint's tests; gives their URLs."""
    running: list[subprocess.Popen[str]] = []

    def begin(*options: str) -> str:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "endpoint" / "server.py"), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def short_trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "short.jsonl", 14, gap_ms=10)


@pytest.mark.slow
def test_screen_and_everything_that_follows(
    call: Call, short_trace: Path, server: Callable[..., str]
) -> None:
    url = server("--delay-ms", "2", "--behaviours", "ok,ok,ok,ok,ok,ok,broken")
    done = call("serve-trace", short_trace, "--endpoint", url, "--goodput", "ttft:5000")
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "[MEASURED]" in text
    assert "completions API, streaming; measured by this client" in text
    assert "token ids; " in text
    assert "each as asked" in text
    assert "all finished ones have the trace's length" in text
    assert "counted by the usage that came with each chunk" in text
    assert "2 of 14 requests failed: HTTP 500: the engine is dead" in text
    for row in ("TTFT", "TBT", "TPOT", "goodput", "send lag, p99", "failed"):
        assert row in done.out
    for row in ("queueing", "KV", "SMs", "preemptions", "prefix", "policies", "decision"):
        assert row not in done.out.replace("prefix hit rate", "")
    assert "endpoint: 14 of 14 requests" in done.err
    run = Path("results") / list_runs(Path("results"))[0]
    shown = call("explain", run)
    assert "send lag, ms" in shown.out
    one = call("explain", run, "--request", 3)
    assert "f first" in one.out
    parts = json.loads(call("explain", run, "--request", 3, "--json").out)
    assert sum(parts["parts"].values()) == parts["total_ns"]
    assert list(parts["parts"]) == ["unsent", "first", "tokens", "end"]
    failed = json.loads(call("explain", run, "--request", 6, "--json").out)
    assert sum(failed["parts"].values()) == failed["total_ns"]
    engine = call("serve-trace", short_trace, "--scheduler", "vllm", "--no-progress", "--json")
    folder = json.loads(engine.out)["runs"][0]["folder"]
    compared = call("compare", run, folder, "--goodput", "ttft:400")
    assert compared.code == 0, compared.err
    assert "simulated and measured runs are mixed" in " ".join(compared.out.split())
    drawn = call("timeline", run, "-o", "timeline.json")
    assert drawn.code == 0, drawn.err
    events = json.loads(Path("timeline.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "request 3" for event in events) == 2
    kept = call("gate", "baseline", "save", run, "-o", "base.json")
    assert kept.code == 0, kept.err
    page = call("report", run, "-o", "page.html")
    assert page.code == 0, page.err
    again = call("rerun", run)
    assert again.code == 0, again.err
    assert "what is measured never gives the same event log twice" in again.out


@pytest.mark.slow
def test_json_and_seeds(call: Call, short_trace: Path, server: Callable[..., str]) -> None:
    done = call(
        "serve-trace", short_trace, "--endpoint", server(), "--limit", 5, "--seeds", 2, "--json",
        "--timeout", 9, "--vocab-size", 300, "--prompt", "ids", "--model", "made-up",
        "--api", "completions", "--warmup", 0.005, "--rate", 200,
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["simulated"] is False
    assert [run["config"]["seed"] for run in document["runs"]] == [0, 1]
    run = document["runs"][0]
    assert run["label"] == "endpoint"
    config = run["config"]
    assert (config["timeout_s"], config["vocab_size"], config["prompt"]) == (9.0, 300, "ids")
    assert (config["model"], config["api"], config["request_rate"]) == (
        "made-up",
        "completions",
        200,
    )
    metrics = run["summary"]["metrics"]
    assert metrics["kv_use_peak"]["value"] is None
    assert metrics["preemptions"]["value"] is None
    assert metrics["ttft_queueing"]["mean"] is None
    assert "scheduler" not in config
    assert "send_lag" in document["over_seeds"]["endpoint"]


@pytest.mark.parametrize("name", sorted(_OF_ENGINE))
def test_flags_of_the_engine_are_refused(call: Call, short_trace: Path, name: str) -> None:
    flag = {
        "prefix_caching": ["--no-prefix-caching"], "recalibrate": ["--recalibrate"],
        "force_profile": ["--force-profile"], "stop_at_eos": ["--stop-at-eos"],
        "load_format": ["--load-format", "dummy"], "graphs": ["--no-graphs"],
        "enable_expert_parallel": ["--enable-expert-parallel"],
    }.get(name, [f"--{name.replace('_', '-')}", "1"])  # fmt: skip
    done = call("serve-trace", short_trace, "--endpoint", "http://127.0.0.1:9", *flag)
    assert done.code == 2
    assert "means nothing with --endpoint" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--api chat", 2, "--api needs a server: --endpoint URL"),
        ("--timeout 3", 2, "--timeout needs a server"),
        ("--endpoint nonsense", 2, "not an http or https URL"),
        ("--endpoint http://u:hush@h/", 2, "--api-key-env"),
        ("--endpoint http://127.0.0.1:9 --api telepathy", 2, "'telepathy' is unknown"),
        ("--endpoint http://127.0.0.1:9 --timeout 0", 2, "above 0"),
        ("--endpoint http://127.0.0.1:9/v1/completions --api chat", 2, "Choose one"),
        ("--endpoint http://127.0.0.1:9 --api-key-env NO_SUCH_KEY", 2, "NO_SUCH_KEY is not set"),
        ("--endpoint http://127.0.0.1:9", 1, "connection refused. Is the server up?"),
    ],
)
def test_errors_are_one_line(
    call: Call,
    short_trace: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr("nexusbench.endpoint.probing._PAUSE_S", 0.01)
    done = call("serve-trace", short_trace, *flags.split(), "--no-progress")
    assert done.code == code
    assert words in done.err
    assert len(done.err.splitlines()) == 1
    assert "hush" not in done.err
    assert not list_runs(Path("results"))


@pytest.mark.slow
def test_all_failed_is_an_error_though_kept(
    call: Call, short_trace: Path, server: Callable[..., str]
) -> None:
    url = server("--behaviours", "broken")
    done = call("serve-trace", short_trace, "--endpoint", url, "--no-progress")
    assert done.code == 1
    assert "all of 14 requests failed, HTTP 500: the engine is dead" in done.err
    assert len(list_runs(Path("results"))) == 1


@pytest.mark.slow
def test_a_servers_words_steer_no_screen_and_tell_no_key(
    call: Call, short_trace: Path, server: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very/secret+key-42")
    ways = "tells_key,steers_500,tells_key_as_a_reason,tells_key_quoted,ok"
    url = server("--behaviours", ways, "--models", "na\x1b[31mme\u202e")
    for flags in (("--json",), ()):
        done = call("serve-trace", short_trace, "--endpoint", url, "--no-progress", *flags)
        assert done.code == 0, done.err
        text = done.out + done.err
        assert "wrong key ***" in text
        assert "red [bold] ok" in text
        assert "secret" not in text
        assert all(sign.isprintable() or sign == "\n" for sign in text)
    for name in list_runs(Path("results")):
        assert name.isprintable()
        for command in ("compare", "explain"):
            shown = call(command, Path("results") / name)
            assert shown.code == 0, shown.err
            assert "secret" not in shown.out
            assert all(sign.isprintable() or sign == "\n" for sign in shown.out)


@pytest.mark.slow
def test_a_stream_that_is_held_back_is_warned_of(
    call: Call, short_trace: Path, server: Callable[..., str]
) -> None:
    url = server("--behaviours", "held_back")
    flags = ("--endpoint", url, "--goodput", "tpot:1", "--no-progress")
    done = call("serve-trace", short_trace, *flags)
    assert done.code == 0, done.err
    text = " ".join(done.out.split())
    assert "WARNING 14 of 14 finished answers came in one delivery" in text
    assert "TPOT, ms" not in text
    assert "SLO attainment % of offered 0" in text
    run = json.loads(call("serve-trace", short_trace, *flags, "--json").out)["runs"][0]
    assert len(run["resolved"]["client"]["warnings"]) == 1
    assert run["summary"]["metrics"]["tpot"]["mean"] is None


def test_a_url_with_the_key_in_it_is_refused(
    call: Call, short_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    for flags in (
        ("--endpoint", "http://127.0.0.1:9/sk-very-secret/v1"),
        ("--endpoint", "http://127.0.0.1:9", "--model", "sk-very-secret"),
    ):
        done = call("serve-trace", short_trace, *flags, "--no-progress")
        assert done.code == 2
        assert f"{flags[-2]} holds the API key" in done.err
        assert "secret" not in done.err


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is(call: Call, tmp_path: Path, server: Callable[..., str]) -> None:
    trace = write_trace(tmp_path / "long.jsonl", 2000, gap_ms=30)
    url = server("--behaviours", "ok,ok,ok,stall")
    process = start("serve-trace", trace, "--endpoint", url, cwd=tmp_path)
    assert process.stderr is not None
    assert "started" in process.stderr.readline()
    # Until something is under way, and something has ended.
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.6)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "of 2000 requests ended" in done.err
    reader = RunReader(list_runs(tmp_path / "results")[0], tmp_path / "results")
    assert reader.status == "interrupted"
    events = reader.table("ended")
    assert len(events["request"]) > 0
    assert reader.manifest.resolved.client.answered > 0
    # Those under way arrived, and have no end.
    assert len(reader.table("arrived")["request"]) > len(events["request"])
    shown = call("compare", reader.path)
    assert shown.code == 0
    assert "unfinished" in shown.out


@pytest.mark.slow
def test_a_kill_keeps_what_was_measured(
    call: Call, tmp_path: Path, server: Callable[..., str]
) -> None:
    """However long the first request is still under way."""
    trace = write_trace(tmp_path / "long.jsonl", 2000, gap_ms=30)
    lines = trace.read_text().splitlines()
    lines[0] = '{"timestamp": 0, "input_length": 9, "output_length": 30}'
    trace.write_text("\n".join(lines) + "\n")
    ways = ",".join(["ok"] * 25 + ["silent"])
    process = start("serve-trace", trace, "--endpoint", server("--behaviours", ways), cwd=tmp_path)
    results = tmp_path / "results"
    deadline, ended = time.monotonic() + 60, 0
    while ended < 60 and time.monotonic() < deadline:
        time.sleep(0.2)
        if names := list_runs(results):
            ended = len(RunReader(names[0], results).table("ended")["request"])
    process.kill()
    finish(process)
    reader = RunReader(list_runs(results)[0], results)
    assert reader.status == "killed or still running"
    assert len(reader.table("ended")["request"]) >= ended >= 60
    shown = call("compare", reader.path)
    assert shown.code == 0, shown.err
    assert "unfinished" in shown.out
    parts = json.loads(call("explain", reader.path, "--request", 0, "--json").out)
    assert parts["outcome"] == "unfinished"


@pytest.mark.slow
def test_without_httptools(short_trace: Path) -> None:
    code = (
        "import sys; sys.modules['httptools'] = None; from nexusbench.cli.main import main; "
        f"sys.exit(main(['serve-trace', {str(short_trace)!r}, '--endpoint', 'http://127.0.0.1:9']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 2
    assert done.stderr == "error: --endpoint needs httptools: pip install 'nexusbench[endpoint]'\n"
