"""Other CPU engines behind one interface, for ``tests.benchmarks.cpu_engine``."""

from __future__ import annotations

import json
import os
import time

import numpy
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


class LlamaCpp:
    """llama.cpp through llama-cpp-python's bindings of its C functions; no vocabulary."""

    name = "llama.cpp"

    def __init__(self, folder, dtype, threads, most, tokens):
        import gguf
        import llama_cpp

        self.c, self.most = llama_cpp, most
        path = folder / "model.gguf"
        write_gguf(gguf, folder, path, getattr(torch, dtype))
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(quiet, None)
        self.quiet = quiet  # the C side keeps a pointer to it
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = most * -(-tokens // 256) * 256
        settings.n_seq_max = most
        settings.n_threads = settings.n_threads_batch = threads
        self.model = model
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def step(self, tokens, done):
        """One call; the next token of every sequence."""
        batch, place, last = self.batch, 0, []
        for sequence, ids in enumerate(tokens):
            for index, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, done + index
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = index == len(ids) - 1
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        if self.c.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        rows = [self.c.llama_get_logits_ith(self.context, row) for row in last]
        return [int(numpy.ctypeslib.as_array(row, (self.vocab,)).argmax()) for row in rows]

    def run(self, prompts, new):
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        start = time.perf_counter()
        tokens = self.step(prompts, 0)
        middle, made = time.perf_counter(), [tokens]
        for count in range(new - 1):
            tokens = self.step([[token] for token in tokens], len(prompts[0]) + count)
            made.append(tokens)
        end = time.perf_counter()
        return middle - start, end - middle, [list(row) for row in zip(*made, strict=True)]


def write_gguf(gguf, folder, path, dtype):
    """The checkpoint of ``folder`` as GGUF, with rotary pairs as neighbours."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    kind = gguf.GGMLQuantizationType.BF16 if dtype == torch.bfloat16 else None
    for name, tensor in load_file(folder / "model.safetensors").items():
        count = {"q_proj.weight": heads, "k_proj.weight": kv_heads}.get(name[-13:])
        if count:
            pairs = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2)
            tensor = pairs.reshape(tensor.shape)
        to = names.get_name(name, try_suffixes=(".weight",))
        if tensor.dim() == 1 or kind is None:
            writer.add_tensor(to, tensor.float().numpy())
        else:
            raw = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(to, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ENGINES = (Transformers, Vllm, LlamaCpp)
