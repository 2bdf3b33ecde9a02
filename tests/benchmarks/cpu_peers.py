"""Other CPU engines behind one interface, for ``tests.benchmarks.cpu_engine``."""

from __future__ import annotations

import json
import os
import time

import torch

SIZES = {
    "small": (512, 8, 8, 2, 1536, 32000),
    "larger": (1024, 16, 16, 4, 3072, 32000),
    "layer": (64, 1, 4, 2, 128, 1024),
}


def write_config(folder, name):
    hidden, layers, heads, kv_heads, wide, vocab = SIZES[name]
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": wide, "vocab_size": vocab,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_checkpoint(folder, name, dtype):
    """Random weights in ``folder``, by transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    write_config(folder, name)
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder)
    write_config(folder, name)  # as it was: transformers adds fields


class Transformers:
    """``generate``, timed at its first token."""

    name = "transformers"

    def __init__(self, folder, dtype, threads, most, tokens):
        import transformers

        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()

    def run(self, prompts, new):
        import transformers

        times = []

        class Clock(transformers.StoppingCriteria):
            def __call__(self, input_ids, scores, **_):
                times.append(time.perf_counter())
                return torch.zeros(len(input_ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        start = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                stopping_criteria=transformers.StoppingCriteriaList([Clock()]),
            )
        return times[0] - start, times[-1] - times[0], out[:, ids.shape[1] :].tolist()


class Vllm:
    """vLLM's CPU build, its engine core in this process."""

    name = "vllm"

    def __init__(self, folder, dtype, threads, most, tokens):
        os.environ.update(
            VLLM_ENABLE_V1_MULTIPROCESSING="0",
            VLLM_CPU_OMP_THREADS_BIND="nobind",
            VLLM_CPU_KVCACHE_SPACE="1",
            VLLM_LOGGING_LEVEL="ERROR",
        )
        import vllm

        self.vllm = vllm
        self.llm = vllm.LLM(
            str(folder),
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=512,
            max_num_seqs=most,
            max_num_batched_tokens=most * tokens,
            enable_prefix_caching=False,
            enforce_eager=os.environ.get("VLLM_EAGER") == "1",
            disable_log_stats=True,
        )
        self.count = 0

    def run(self, prompts, new):
        engine, settings = (
            self.llm.llm_engine,
            self.vllm.SamplingParams(
                temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False
            ),
        )
        start, first, tokens = time.perf_counter(), None, {}
        names = []
        for prompt in prompts:
            names.append(str(self.count))
            engine.add_request(names[-1], {"prompt_token_ids": prompt}, settings)
            self.count += 1
        while engine.has_unfinished_requests():
            for out in engine.step():
                tokens[out.request_id] = list(out.outputs[0].token_ids)
            if first is None and len(tokens) == len(prompts):
                first = time.perf_counter()
        return first - start, time.perf_counter() - first, [tokens[name] for name in names]


ENGINES = (Transformers, Vllm)
