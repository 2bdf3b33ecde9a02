"""What the symbols in the metrics' formulas mean; docs/metrics.md has the same words."""

from __future__ import annotations

from collections.abc import Mapping

SYMBOLS: Mapping[str, str] = {
    "a_i": "scheduled arrival: when the trace says the request arrives, whatever the engine was "
    "doing then; of a later turn of a session the end of the turn before plus the think "
    "time; in a closed loop when its user became free",
    "s_i": "first admission: when it first left the waiting queue, in a launch",
    "t_i,k": "when its k-th token was ready; f_i = t_i,1 is the first",
    "e_i": "when it ended",
    "n_i": "output tokens that it got",
    "p_i": "prompt tokens",
    "c_i": "prompt tokens found in the prefix cache at an admission",
    "v_i": "times it was preempted",
    "M": "measured requests: they arrived, and not during the warm-up",
    "G": "those of M that got a first token, whatever became of them later",
    "F": "those of M that finished; so F is part of G",
    "b_j, d_j": "begin and end. A launch begins when it was submitted, or when its partition ended "
    "the one before, if that is later",
    "z_j": "how long it would have taken without a neighbour on the GPU, where the device knows",
    "w_j": "how long the belief (the policy's cost model) said it would take",
    "m_j": "SMs it was launched on",
    "x_j, h_j, q_j": "decodes, chunks, and tokens of the chunks",
    "u_j": "KV blocks in use at its launch, on all GPUs together",
    "y_j": "how long its partition had stood still on the GPU when it began, where the device "
    "measures that",
    "o_j, r_j": "FLOPs that the model needs for it, and bytes of weights, keys and values it reads "
    "or writes",
    "T": "the window: from the first measured arrival to the last end or token of a measured "
    "request",
    "B": "the time within T in which at least one partition computed",
    "K": "KV blocks",
    "R": "re-partitions",
}
