"""One small table of every format of measured partitions, made up: what a reader must accept."""

from __future__ import annotations

from pathlib import Path

CORUN = (
    "decode_batch,context,prefill_tokens,solo_prefill_ms,solo_decode_ms,mode,prefill_sms,"
    "decode_sms,prefill_ms,decode_ms,both_ms,sequential_over_both"
)
STEP, PAIR = "sim:l20,true,llama-3.1-8b", "decode step,8,2048,"
# name -> (GPU, header, rows, the operators that it must score)
TABLES: dict[str, tuple[str, str, list[str], set[str]]] = {
    "scan": ("h200", "sms,memory_kernel_ms", ["16,6", "64,2.5", "132,2"], {"stream"}),
    "reads": ("l20", "sms,gb_per_s", ["8,300", "92,800"], {"stream", "stream, absolute"}),
    "kernels": (
        "h100",
        "op,K,N,tokens_or_batch,context,sms,ms",
        [
            *(f"gemm,4096,4096,{m},,{s},{0.1 * 132 / s}" for m in (1, 4096) for s in (64, 132)),
            *(f"decode_attention_fa2,,,8,4096,{s},{0.1 * 132 / s}" for s in (64, 132)),
            *(f"prefill_attention_fa2_noncausal,,,4096,,{s},{132 / s}" for s in (64, 132)),
        ],
        {"gemm", "gemm 1..16 tokens", "gemm above 1024 tokens", "decode attention",
         "prefill attention", "attention", "gemm, absolute", "prefill attention, absolute"},
    ),
    "steps": (
        "a100",
        "model,gpus,mps_percent,batch,tokens_each,phase,ms",
        [
            *(f"llama-13b,2,{p},8,128,decoding,{2000 / p}" for p in (50, 100)),
            *(f"llama-30b,1,{p},4,512,prefill,{20000 / p}" for p in (50, 100)),
        ],
        {"decode step", "prefill step", "decode step batch 1..16", "decode step llama-13b",
         "decode step, absolute", "prefill step above 512 tokens"},
    ),
    "decode attention": (
        "a100", "batch,context,sms,ms,rel_to_108", ["8,4096,54,1.6,1.7", "8,4096,108,0.96,1"],
        {"decode attention", "attention", "decode attention, absolute"},
    ),
    "prefill attention": (
        "a100", "prefill_tokens,sms,ms", ["4096,54,10.4", "4096,108,5.2"], {"prefill attention"},
    ),
    "mlp": ("a100", "tokens,sms,ms,rel_to_108", ["8192,54,9.1,1.7", "8192,108,5.4,1"],
            {"prefill mlp"}),
    "stages": (
        "h200", "stage,sms,rel_to_132",
        ['"AR decode step, batch 16",32,1.33', "vocoder (compute),32,2.5", "other,32,2"],
        {"stage decode step", "stage compute"},
    ),
    "corun": (
        "a100", CORUN,
        ["8,4096,4096,5.2,0.96,two_stream,108,108,6,1,6,1", "8,4096,4096,5.2,0.96,green,54,54,"
         "9.6,1.6,9.6,0.65"],
        {"work rate streams", "work rate split", "slow-down split prefill",
         "slow-down split decode"},
    ),
    "streams or green": (
        "h200",
        "gpu,what,single_stream_ms,two_streams_ms,green_contexts_ms,two_streams_work_rate,"
        "green_work_rate",
        ["RTX 5070 Ti,100 compute + 100 memory kernels,9,9,9,9,9",
         "H200,100 compute + 100 memory kernels,4700,4400,3500,1.06,1.34"],
        {"work rate streams", "work rate split"},
    ),
    "gemv": (
        "l20",
        "sms_shared,gemv_n,gemm_n,gemv_alone_ms,gemm_alone_ms,gemv_beside_ms,gemm_beside_ms",
        ["16,8192,1024,3.3,0.9,3.3,4.2"], {"work rate streams"},
    ),
    "copies": (
        "a100", "blocks_each,alone_40sms_gb_s,beside_other_40sms_gb_s", ["80,470,250"],
        {"neighbour split stream"},
    ),
    "profile": (
        "l20",
        "device,simulated,model,operator,batch,context,tokens,sms,ms,beside_operator,beside_batch,"
        "beside_context,beside_tokens,beside_sms,beside_ms,slowdown,beside_slowdown,work_rate",
        [
            *(f"{STEP},{PAIR},{s},{20 + 500 / s},,,,,,,,," for s in (46, 92)),
            *(f"{STEP},weights,1,128,,{s},{18 + 200 / s},,,,,,,,," for s in (46, 92)),
            *(f"{STEP},decode attention,8,2048,,{s},{300 / s},decode step,8,128,,{s},20,,,"
              for s in (46, 92)),
            *(f"{STEP},prefill step,1,{c},1024,{s},{9000 / s},,,,,,,,,"
              for c in (0, 512) for s in (46, 92)),
            f"{STEP},work rate split,1,0,1024,46,200,{PAIR},46,33,1.03,1.05,1.2",
            f"{STEP},work rate streams,1,0,1024,92,180,prefill step,1,512,1024,92,190,1.8,1.8,1.1",
            f"{STEP},work rate streams,1,0,1024,92,180,{PAIR},92,,1.8,,",
        ],
        {"decode step", "weights", "decode attention", "prefill step", "work rate split",
         "work rate streams", "neighbour streams prefill", "neighbour split decode",
         "weights, absolute"},
    ),
    "servers": ("h100", "mode,tpot_mean_ms,ttft_mean_ms,itl_p99_ms", ["alone,9,43,39"], set()),
    "lanes": (
        "l20", "chunk,mode,gap_median_ms,gap_p99_ms,gap_max_ms,injected_ttft_ms,prefill_tok_s",
        ["512,serial,80,500,510,5000,1100", "512,overlap,80,500,500,5500,950",
         "128,serial,80,200,,,900", "128,overlap,82,210,,,"],
        {"work rate streams", "neighbour streams prefill", "neighbour streams decode"},
    ),
}  # fmt: skip


def write_table(folder: Path, name: str, *more: str) -> tuple[str, Path]:
    """(GPU, file) of one of them, with further rows."""
    gpu, header, rows, _ = TABLES[name]
    return gpu, write_rows(folder, header, [*rows, *more])


def write_rows(folder: Path, header: str, rows: list[str]) -> Path:
    """A table of these lines."""
    path = folder / "table.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path
