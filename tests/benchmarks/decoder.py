"""The decoder beside transformers, same weights, in turns: python -m tests.benchmarks.decoder

``--host`` measures instead what a decode step costs with a model of one small layer: planning,
preparing, forward and sampling. Figures are medians; only ratios of one run mean much on a machine
that others use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nexusbench.kernels.attention.sdpa import SdpaAttention
from nexusbench.kernels.planner import BlockTables, plan_attention
from nexusbench.models.architecture import load_decoder_config
from nexusbench.models.decoder import Decoder
from nexusbench.models.sampling import Sampling, sample
from nexusbench.models.step import make_step

BLOCK, PROMPT, NEW = 16, 128, 32
SIZES = {
    "small": (512, 8, 8, 2, 1536, 32000),
    "larger": (1024, 16, 16, 4, 3072, 32000),
    "layer": (64, 1, 4, 2, 128, 1024),
}
Times = tuple[float, float]


def write_config(folder: Path, name: str) -> None:
    hidden, layers, heads, kv_heads, wide, vocab = SIZES[name]
    config = {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": wide,
        "vocab_size": vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


class Ours:
    """Prefill in one step, then decode steps, as an engine would ask for them."""

    def __init__(self, decoder: Decoder, batch: int, tokens: int) -> None:
        self.decoder, self.batch = decoder, batch
        blocks = -(-tokens // BLOCK)
        self.kv = decoder.new_kv(batch * blocks, BLOCK)
        self.backend = SdpaAttention(self.kv)
        # Block by block in turns, as running requests get theirs.
        self.blocks = [list(range(first, batch * blocks, batch)) for first in range(batch)]
        self.tables, self.keys = BlockTables(), list(range(batch))

    def step(self, tokens: list[list[int]], done: int) -> list[int]:
        rows = self.tables.rows(self.keys, self.blocks)
        sizes = [len(tokens[0])] * self.batch
        plan = plan_attention(
            sizes,
            [done] * self.batch,
            self.tables.table,
            BLOCK,
            rows=rows,
            padded_tokens=self.backend.padded_tokens,
        )
        step = make_step(plan, tokens, self.backend, self.decoder.config.spec.vocab_size)
        logits = self.decoder.forward(step, self.kv)
        return sample(logits, Sampling(), self.keys, [done + sizes[0]] * self.batch)

    def run(self, prompts: list[list[int]]) -> Times:
        start = time.perf_counter()
        tokens = self.step(prompts, 0)
        middle = time.perf_counter()
        for count in range(NEW):
            tokens = self.step([[token] for token in tokens], PROMPT + count)
        return middle - start, time.perf_counter() - middle


def run_transformers(model: Any, prompts: torch.Tensor) -> Times:
    with torch.inference_mode():
        start = time.perf_counter()
        out = model(prompts, use_cache=True, logits_to_keep=1)
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        middle = time.perf_counter()
        for _ in range(NEW):
            out = model(
                tokens, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
            )
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        return middle - start, time.perf_counter() - middle


def side_by_side(folder: Path, size: str, dtype: str, repeats: int) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    write_config(folder, size)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder)
    decoder = Decoder.load(load_decoder_config(folder), dtype=dtype)
    for batch in (1, 8, 32):
        ours = Ours(decoder, batch, PROMPT + NEW)
        prompts = torch.randint(0, 32000, (batch, PROMPT))
        times: list[tuple[Times, Times]] = []
        for _ in range(repeats):
            times.append((ours.run(prompts.tolist()), run_transformers(model, prompts)))
        line = f"{size} {dtype} {torch.get_num_threads()} threads, batch {batch}:"
        for part, (name, count) in enumerate((("prefill", PROMPT), ("decode", NEW))):
            mine, theirs = (
                batch * count / statistics.median(each[side][part] for each in times)
                for side in (0, 1)
            )
            line += f"  {name} {mine:,.0f} tok/s, transformers {theirs:,.0f}: {mine / theirs:.2f}x"
        print(line, flush=True)


def host_cost(folder: Path, dtype: str, context: int) -> None:
    write_config(folder, "layer")
    decoder = Decoder.load(load_decoder_config(folder), dtype=dtype, load_format="dummy")
    for batch in (1, 32, 256):
        ours = Ours(decoder, batch, context + 1)
        micros = _median_micros(lambda ours=ours: ours.step([[1]] * ours.batch, context))
        print(
            f"one layer, {dtype}, {torch.get_num_threads()} threads, context {context}, batch "
            f"{batch}: {micros:,.0f} us per step, {micros / batch:.2f} us per token",
            flush=True,
        )


def _median_micros(call: Callable[[], object], count: int = 150) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[20:]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "larger"), default="small")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--context", type=int, default=32, help="of --host")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.host:
            host_cost(Path(folder), chosen.dtype, chosen.context)
        else:
            side_by_side(Path(folder), chosen.size, chosen.dtype, chosen.repeats)


if __name__ == "__main__":
    main()
