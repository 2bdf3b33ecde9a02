"""NaN and infinite logits: no token is drawn from them, and no check agrees with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from checkpoints import write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from serving import served  # noqa: E402

from nexusbench.cli.main import main  # noqa: E402
from nexusbench.core.errors import NexusbenchError  # noqa: E402
from nexusbench.core.state import Limits  # noqa: E402
from nexusbench.kernels.paged import HeadShape, PagedKV  # noqa: E402
from nexusbench.models.agreement import Agreement, BrokenLogits  # noqa: E402
from nexusbench.models.checkpoint import RandomTensors  # noqa: E402
from nexusbench.models.sampling import broken_rows, whence  # noqa: E402
from nexusbench.testing import offer  # noqa: E402
from nexusbench.testing._harness import Setting  # noqa: E402

SETTING = Setting(kv_blocks=64, limits=Limits(8, 128, 4096))
LAST = "model.layers.3.self_attn.k_proj.weight"


def damage(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    """One value of one random tensor becomes ``value``."""
    whole = RandomTensors.read

    def read(self: RandomTensors, wanted: str, shape: Sequence[int]) -> torch.Tensor:
        tensor = whole(self, wanted, shape)
        if wanted == name:
            tensor.view(-1)[7] = value
        return tensor

    monkeypatch.setattr(RandomTensors, "read", read)


def test_rows_that_are_broken() -> None:
    logits = torch.randn(4, 100)
    assert broken_rows(logits) == []
    assert broken_rows(torch.full((2, 100), 3e38)) == []  # only the sum is infinite
    logits[1, 5], logits[3, 0] = float("nan"), float("-inf")
    assert broken_rows(logits) == [1, 3]
    logits[1, 6], logits[3, 1] = float("inf"), float("inf")
    assert broken_rows(logits) == [1, 3]


def test_where_it_began() -> None:
    kv = PagedKV(3, 4, 16, HeadShape(4, 2, 8), torch.float32)
    assert "all finite" in whence(kv, [0, 1])
    kv.layers[2].tensor[1, 3, 0, 0, 0] = float("nan")
    assert "finite below layer 2 (of 0 to 2)" in whence(kv, [0, 1])
    assert "all finite" in whence(kv, [0, 2, 3])
    kv.layers[0].tensor[0, 0, 1, 0, 0] = float("inf")
    assert "from layer 0 on" in whence(kv, [0])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (LAST, float("nan"), "finite below layer 3 (of 0 to 3)"),
        ("model.norm.weight", float("nan"), "last layer or the output head"),
        ("model.layers.0.input_layernorm.weight", float("inf"), "from layer 0 on"),
    ],
)
def test_a_run_fails_naming_request_and_layer(
    monkeypatch: pytest.MonkeyPatch, name: str, value: float, words: str
) -> None:
    damage(monkeypatch, name, value)
    with pytest.raises(NexusbenchError, match="NaN or infinite") as caught:
        served("tiny", [offer(0, 0, 20, 5)], "vllm", setting=SETTING)
    said = str(caught.value)
    assert "request '" in said
    assert words in said
    assert "step " in said or "the warm-up" in said


def test_drawn_tokens_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    damage(monkeypatch, "lm_head.weight", float("nan"))
    with pytest.raises(NexusbenchError, match="NaN or infinite"):
        served("tiny", [offer(0, 0, 20, 5)], "vllm", setting=SETTING, temperature=0.8)


@pytest.mark.slow
def test_check_model_never_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")
    write_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][5] = 3e38  # finite itself; what it is multiplied with is not small
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    asked = ["check-model", str(tmp_path), "--prompts", "5,20", "--new-tokens", "3"]
    assert main(asked) == 3
    shown = capsys.readouterr().out
    assert "DIFFERS" in shown
    assert "NaN or infinite logits: ours, prompt 0" in shown
    assert "NaN or infinite logits: transformers, prompt 0" in shown
    assert main([*asked, "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["agrees"] is False
    assert {broken["side"] for broken in document["broken"]} == {"ours", "transformers"}


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 3e38])  # whose norm is 0 too: the sum of squares overflows
def test_zeros_are_no_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")
    write_checkpoint(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.embed_tokens.weight"][...] = value
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert main(["check-model", str(tmp_path), "--prompts", "5", "--new-tokens", "2"]) == 3
    assert "nothing to agree on" in capsys.readouterr().out


def test_broken_logits_alone_are_no_agreement() -> None:
    found = Agreement("m", "float32", (5,), 1, 6, 0.0, 1.0, 1e-4, ())
    assert found.agrees
    assert not msgspec.structs.replace(found, broken=(BrokenLogits("ours", 0, 2, 1),)).agrees
