"""Families beyond dense decoders of full attention: real tokens under every scheduler, and what a
design is made of.
"""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.examples import slow

torch = pytest.importorskip("torch")

from checkpoints import FAMILIES, TOWERS, write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from serving import cpu, served  # noqa: E402

from nexusbench.cli.main import main  # noqa: E402
from nexusbench.core.errors import InputError  # noqa: E402
from nexusbench.core.state import Limits  # noqa: E402
from nexusbench.models.agreement import TIE, compare  # noqa: E402
from nexusbench.models.architecture import load_decoder_config  # noqa: E402
from nexusbench.models.decoder import Decoder  # noqa: E402
from nexusbench.results.reader import RunReader  # noqa: E402
from nexusbench.schedulers.base import schedulers  # noqa: E402
from nexusbench.testing import offer  # noqa: E402
from nexusbench.testing._harness import Setting  # noqa: E402

LENGTHS = ((5, 9), (40, 12), (64, 7), (33, 14), (64, 5))  # prompt, output; windows have 24 tokens


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: family -> (folder, transformers' model), each written once."""
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")

    @cache
    def write(family: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(family)
        return folder, write_checkpoint(folder, family)

    return write


@cache
def prompts() -> list[list[int]]:
    draw = random.Random(7)
    shared = [draw.randrange(211) for _ in range(40)]
    own = [[draw.randrange(211) for _ in range(count)] for count, _ in LENGTHS]
    return [(shared + ids)[:64] if len(ids) == 64 else ids for ids in own]


@cache
def expected(model: Any) -> list[tuple[list[int], list[float]]]:
    """What transformers generates greedily, and by how much it prefers each token."""
    found = []
    for prompt, (_, output) in zip(prompts(), LENGTHS, strict=True):
        ids, margins = list(prompt), []
        with torch.inference_mode():
            for _ in range(output):
                best = model(torch.tensor([ids])).logits[0, -1].float().topk(2)
                margins.append(float(best.values[0] - best.values[1]))
                ids.append(int(best.indices[0]))
        found.append((ids[-output:], margins))
    return found


def check(model: Any, got: dict[int, list[int]]) -> None:
    """Greedy tokens are transformers' own, up to ties, after which it is another text."""
    for index, (tokens, margins) in enumerate(expected(model)):
        mine = list(got[index])
        assert len(mine) == len(tokens)
        differs = [place for place in range(len(tokens)) if mine[place] != tokens[place]]
        assert not differs or margins[differs[0]] <= TIE, (index, differs[0])


@pytest.mark.parametrize("family", [*FAMILIES, *TOWERS])
def test_check_model_agrees(checkpoint: Any, family: str) -> None:
    folder, _ = checkpoint(family)
    found = compare(load_decoder_config(folder), prompts=(5, 70), new_tokens=8)
    assert found.agrees, found
    assert found.largest_logit > 1


def test_check_model_says_what_16_bits_do_to_experts(
    checkpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = checkpoint("deepseek-v3")
    for dtype, code in (("bfloat16", 3), ("float32", 0)):
        assert main(["check-model", str(folder), "--dtype", dtype]) == code
        shown = " ".join(capsys.readouterr().out.split())
        assert ("pick other experts where scores are closer than rounding" in shown) == bool(code)


@pytest.mark.parametrize("family", FAMILIES)
def test_serve_trace_makes_the_tokens_of_transformers(
    checkpoint: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = checkpoint(family)
    monkeypatch.chdir(tmp_path)
    lines = [
        {"timestamp": 3 * index, "token_ids": ids, "input_length": count, "output_length": output}
        for index, (ids, (count, output)) in enumerate(zip(prompts(), LENGTHS, strict=True))
    ]
    Path("t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["serve-trace", "t.jsonl", "--device", "cpu", "--model", str(folder)]
    options = ["--scheduler", "nexus,vllm", "--max-num-batched-tokens", "32", "--block-size", "8"]
    assert main([*arguments, *options, "--no-progress"]) == 0
    runs = sorted(Path("results").iterdir())
    assert len(runs) == 2
    for run in runs:
        check(model, RunReader(run).tokens())


def one_gpu() -> list[str]:
    return [name for name in schedulers.names() if schedulers.load(name).num_gpus == 1]


@pytest.mark.parametrize("scheduler", slow(*one_gpu()))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_scheduler_changes_a_token(checkpoint: Any, family: str, scheduler: str) -> None:
    folder, model = checkpoint(family)
    setting = Setting(
        kv_blocks=256, block_size=4, hash_block=8, limits=Limits(6, 19, 512),
        prompts=dict(enumerate(prompts())),
    )  # fmt: skip
    requests = []
    for index, (count, output) in enumerate(LENGTHS):
        ids = (*range(5), *range(100 * index, 100 * index + 3)) if count == 64 else ()
        requests.append(offer(index, 2 * index, count, output, max_tokens=output, prefix_ids=ids))
    engine, got = served(folder, requests, scheduler, setting=setting)
    check(model, got)
    assert len(engine.log.tables["admitted"]) >= len(LENGTHS)


def test_a_tensor_without_a_place_is_refused_in_a_multi_modal_checkpoint(
    checkpoint: Any, tmp_path: Path
) -> None:
    folder, _ = checkpoint("gemma3-vision")
    name = "language_model.model.layers.1.self_attn.q_proj.bias"
    tensors = load_file(folder / "model.safetensors")
    assert any(key.startswith("vision_tower.") for key in tensors)
    save_file({**tensors, name: torch.ones(64)}, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(InputError, match="has no place in the decoder") as caught:
        Decoder.load(load_decoder_config(tmp_path))
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("mixtral", 3 * 2 * 2 * 16),
        ("deepseek-v3", 3 * (32 + 8)),  # the latent and the rotated key, for all heads
        ("gemma2", 3 * 2 * 2 * 16),  # windows keep what they have passed
    ],
)
def test_a_device_tells_what_it_keeps_of_a_token(checkpoint: Any, family: str, values: int) -> None:
    folder, _ = checkpoint(family)
    with cpu(folder) as device:
        assert device.spec.kv_token_bytes == 4 * values
        kv = device._decoder.new_kv(2, 4)
        assert sum(layer.tensor.numel() for layer in kv.layers) == 2 * 4 * values


def test_a_context_beyond_longrope_is_refused(
    checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = checkpoint("phi3-longrope")
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 20, "output_length": 3}\n')
    arguments = ["serve-trace", str(trace), "--device", "cpu", "--model", str(folder), "--no-save"]
    assert main(arguments) == 2
    wanted = "up to 256 tokens, not 512: beyond them its LongRoPE has other frequencies"
    error = " ".join(capsys.readouterr().err.split())
    assert wanted in error
    assert "Give --max-model-len 256" in error
    assert main([*arguments, "--max-model-len", "256"]) == 0
