"""Broken and impossible inputs: one line each that names file and field and says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from checkpoints import write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from nexusbench.cli.main import main  # noqa: E402
from nexusbench.core import machine  # noqa: E402
from nexusbench.core.errors import InputError, UsageError  # noqa: E402
from nexusbench.kernels.attention.sdpa import SdpaAttention  # noqa: E402
from nexusbench.kernels.paged import PagedKV  # noqa: E402
from nexusbench.kernels.planner import plan_attention  # noqa: E402
from nexusbench.models.architecture import load_decoder_config  # noqa: E402
from nexusbench.models.decoder import Decoder  # noqa: E402
from nexusbench.models.step import check_tokens, make_step  # noqa: E402
from tests.examples import sample  # noqa: E402

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, and the same in shards."""
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")
    folder = tmp_path_factory.mktemp("whole")
    write_checkpoint(folder, "llama").save_pretrained(folder / "shards", max_shard_size="90KB")
    return folder


def edit_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors")


def add_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: torch.ones(64)}, folder / "model.safetensors")


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=1))


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def lose_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def link_out(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    path.symlink_to(path.rename(elsewhere / path.name))


def split_twice(folder: Path) -> None:
    path = folder / "model.safetensors"
    shutil.copy(path, folder / "two.safetensors")
    path.rename(folder / "one.safetensors")


QUERY = "model.layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[str, Callable[[Path], object], str, str | None, str]] = {
    # name: which checkpoint, what is done to it, file named, field named, part of the message
    "truncated": (".", truncate, "model.safetensors", None, "is truncated or no safetensors file"),
    "garbage": (
        ".",
        lambda folder: (folder / "model.safetensors").write_text("hello, world"),
        "model.safetensors",
        None,
        "is truncated or no safetensors file",
    ),
    "wrong dtype": (
        ".",
        lambda folder: edit_tensor(folder, QUERY, lambda tensor: tensor.to(torch.int8)),
        "model.safetensors",
        QUERY,
        "has data type I8. Supported: F32, F16, BF16",
    ),
    "wrong shape": (
        ".",
        lambda folder: edit_tensor(folder, QUERY, lambda tensor: tensor[:32].clone()),
        "model.safetensors",
        QUERY,
        "has shape [32, 64], config.json asks for [64, 64]",
    ),
    "missing tensor": (
        ".",
        drop_tensor,
        "model.safetensors",
        "model.layers.1.mlp.up_proj.weight",
        "is missing. config.json does not belong to these weights",
    ),
    "a bias that config.json does not know": (
        ".",
        lambda folder: add_tensor(folder, "model.layers.0.self_attn.o_proj.bias"),
        "model.safetensors",
        "model.layers.0.self_attn.o_proj.bias",
        "has no place in the decoder that config.json describes",
    ),
    "pickles": (".", only_pickles, "", None, "only as torch pickles (pytorch_model.bin), and op"),
    "nothing": (
        ".",
        lambda folder: (folder / "model.safetensors").unlink(),
        "",
        None,
        "holds no *.safetensors. Give a checkpoint's folder, or --load-format dummy",
    ),
    "unsupported": (
        ".",
        lambda folder: edit_config(folder, model_type="gpt2"),
        "config.json",
        "model_type",
        '"gpt2" is not supported. Supported: deepseek_v2, deepseek_v3, gemma,',
    ),
    "rope": (
        ".",
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "dynamic"}),
        "config.json",
        "rope_parameters.rope_type",
        '"dynamic" is not supported. Supported rope types: default, linear, llama3, yarn',
    ),
    "missing shard": (
        "shards",
        lose_shard,
        INDEX,
        "weight_map",
        ".safetensors is missing (1 of 7 are). Download it into the same folder",
    ),
    "index": (
        "shards",
        lambda folder: (folder / INDEX).write_text("{}"),
        INDEX,
        "weight_map",
        "is not an object of tensor names and files",
    ),
    "index that names a path up": (
        "shards",
        lambda folder: edit_index(folder, lambda where: where.update({QUERY: "../x.safetensors"})),
        INDEX,
        "weight_map",
        "'../x.safetensors' of tensor 'model.layers.0.self_attn.q_proj.weight' is not the name of",
    ),
    "index that names a path": (
        "shards",
        lambda folder: edit_index(folder, lambda where: where.update({QUERY: "/etc/hostname"})),
        INDEX,
        "weight_map",
        "'/etc/hostname' of tensor",
    ),
    "index with a number": (
        "shards",
        lambda folder: edit_index(folder, lambda where: where.update({QUERY: 7})),
        INDEX,
        "weight_map",
        "is not an object of tensor names and files",
    ),
    "index with a list": (
        "shards",
        lambda folder: (folder / INDEX).write_text('{"weight_map": ["a"]}'),
        INDEX,
        "weight_map",
        "is not an object of tensor names and files",
    ),
    "index nested too deeply": (
        "shards",
        lambda folder: (folder / INDEX).write_text("[" * 200_000),
        INDEX,
        "weight_map",
        "is not an object of tensor names and files",
    ),
    "index that names a tensor twice": (
        "shards",
        lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "b", "a": "c"}}'),
        INDEX,
        "weight_map",
        "names 'a' twice",
    ),
    "a shard that is a link out": ("shards", link_out, INDEX, None, "is a link to a file outside"),
    "a file that is a link out": (
        ".",
        link_out,
        "model.safetensors",
        None,
        "is a link to a file outside",
    ),
    "a tensor in two files": (
        ".",
        split_twice,
        "two.safetensors",
        "lm_head.weight",
        "is in one.safetensors",
    ),
    "a huge header": (
        ".",
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + b"{}"),
        "model.safetensors",
        None,
        "is truncated or no safetensors file (a header of 9,2",
    ),
    "NaN weights": (
        ".",
        lambda folder: edit_tensor(folder, QUERY, lambda tensor: tensor.clone().fill_(torch.nan)),
        "model.safetensors",
        QUERY,
        "holds NaN or infinite values",
    ),
    "wrong shard": (
        "shards",
        lambda folder: edit_index(
            folder, lambda where: where.update({QUERY: where["lm_head.weight"]})
        ),
        "model-0000",
        QUERY,
        "is not in this shard",
    ),
}


@pytest.mark.parametrize("name", sample(BROKEN, 4))
def test_broken_checkpoints(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, damage, file, field, message = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(whole / kind, folder, ignore=shutil.ignore_patterns("shards"))
    damage(folder)
    with pytest.raises(InputError) as caught:
        Decoder.load(load_decoder_config(folder))
    assert str(caught.value.file).startswith(str(folder / file))
    assert caught.value.field == field
    assert message in str(caught.value)
    assert caught.value.hint
    assert main(["check-model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_links_of_a_hugging_face_cache_are_in_order(whole: Path, tmp_path: Path) -> None:
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "0f", tmp_path / "models--a--b/blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for path in (whole / "shards").iterdir():
        shutil.copy(path, blobs / f"of-{path.name}")
        (folder / path.name).symlink_to(f"../../blobs/of-{path.name}")
    Decoder.load(load_decoder_config(folder))


def test_the_whole_model_is_read_where_others_lie_beside_it(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("shards"))
    shutil.copy(folder / "model.safetensors", folder / "adapter.safetensors")
    Decoder.load(load_decoder_config(folder))


def test_a_description_has_no_weights() -> None:
    config = load_decoder_config("llama-3.1-8b")
    with pytest.raises(UsageError, match=r"without weights. Give a folder .* --load-format dummy"):
        Decoder.load(config)
    with pytest.raises(UsageError, match=r"no load format 'pickle'. Known: auto, safetensors, dum"):
        Decoder.load(config, load_format="pickle")
    with pytest.raises(UsageError, match="no data type 'fp8'"):
        Decoder.load(load_decoder_config("tiny"), dtype="fp8")


def test_a_model_larger_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 3_000_000_000)
    wanted = r"llama-3.1-8b \(8.03 billion parameters in float32\) needs 34.2 GB, and 3.0 GB of "
    with pytest.raises(UsageError, match=wanted) as caught:
        Decoder.load(load_decoder_config("llama-3.1-8b"), dtype="float32", load_format="dummy")
    assert "Choose a smaller model, --dtype bfloat16" in str(caught.value)


def test_available_memory_is_less_than_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < machine.available_memory() < 2**50
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.available_memory() == 600_000
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "none")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() > 600_000


def test_a_kv_cache_larger_than_memory() -> None:
    decoder = Decoder.load(load_decoder_config("tiny"))
    wanted = r"a KV cache of 1,000,000,000,000 blocks needs .* GB, and .* Ask for fewer blocks"
    with pytest.raises(UsageError, match=wanted):
        decoder.new_kv(10**12, 16)
    with pytest.raises(UsageError, match=r"no memory for a KV cache of .* Ask for fewer blocks"):
        PagedKV(4, 10**12, 16, decoder.heads, torch.float32)


@pytest.mark.parametrize("token", [4096, -1])
def test_a_token_out_of_the_vocabulary(token: int) -> None:
    decoder = Decoder.load(load_decoder_config("tiny"))
    backend = SdpaAttention(decoder.new_kv(2, 16))
    plan = plan_attention([3], [0], [[0]], 16)
    with pytest.raises(InputError, match=f"token {token} at place 1 is not in the vocabulary"):
        make_step(plan, [[5, token, 6]], backend, 4096)
    with pytest.raises(InputError, match=r"t.jsonl: field 'token_ids': token .*another tokenizer"):
        check_tokens([token], 4096, file="t.jsonl")


def test_check_model_needs_transformers_and_says_so(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert main(["check-model", str(whole)]) == 2
    assert 'pip install "nexusbench[check]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "shipped as a description without weights"),
        (["nowhere"], "no shipped model, config.json or folder with one is called 'nowhere'"),
        (["DIR", "--dtype", "int4"], "--dtype takes float32, bfloat16, float16, not 'int4'"),
        (["DIR", "--prompts", "5,x"], "--prompts takes lengths such as 5,37,90, not '5,x'"),
        (["DIR", "--prompts", "510"], "exceed the model's context of 512"),
    ],
)
def test_check_model_usage(
    arguments: list[str], message: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(whole) if argument == "DIR" else argument for argument in arguments]
    assert main(["check-model", *given]) == 2
    assert message in capsys.readouterr().err


def test_check_model_prints_its_verdict(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-model", str(whole), "--prompts", "5,20", "--new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert "in float32: agrees with transformers" in shown
    assert "greedy tokens: 8 of 8 equal" in shown
    assert main(["check-model", str(whole), "--json", "--new-tokens", "4"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agrees"] is True
    assert document["disagreements"] == []
    assert document["largest_difference"] <= document["tolerance"]


def test_check_model_ends_with_3_where_they_differ(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Decoder.load

    def wrong(*arguments: object, **options: object) -> Decoder:
        decoder = load(*arguments, **options)  # type: ignore[arg-type]
        layer = decoder.layers[1]  # of torch where the CPU has no kernels of ours
        getattr(layer, "mlp", layer).down.packed.neg_()
        return decoder

    monkeypatch.setattr(Decoder, "load", wrong)
    assert main(["check-model", str(whole)]) == 3
    shown = capsys.readouterr().out
    assert "DIFFERS" in shown
    assert "which it prefers by" in shown
