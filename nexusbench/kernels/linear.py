"""Linear layers: on a CPU one packed copy of the weights, on a GPU cuBLAS through torch."""

from __future__ import annotations

import torch

from nexusbench.kernels.native import bindings, memory
from nexusbench.kernels.native.bindings import GROUP

# Rows up to which torch is faster with the weight as the left factor.
_TRANSPOSED_UP_TO = {torch.bfloat16: 128, torch.float32: 4}


class LinearLayer:
    """``y = x W^T (+ bias) (+ residual)`` on a weight that is packed once, when this is made.

    ``weight`` is [N, K], ``bias`` [N]. With ``gated`` the weight is [2 N, K], first the gate's
    rows, then the up projection's, and ``y = silu(gate) * up`` is [M, N].

    Where native kernels run (bf16 and fp32 on a CPU with AVX-512), a row's result has the same bits
    in every batch and on any number of threads, and the weight passed in is not kept. Elsewhere
    torch computes, whose results may depend on the number of rows in the last bits; see
    ``_torch_product`` for how. ``path`` says which: ``native`` or ``torch``. Tensors that are not
    on a CPU stay where the weight is.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        gated: bool = False,
        native: bool = True,
    ) -> None:
        if weight.dim() != 2 or (gated and weight.shape[0] % 2):
            raise ValueError(f"weight is {tuple(weight.shape)}; wanted (outputs, inputs)")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias is {tuple(bias.shape)}; wanted ({weight.shape[0]},)")
        self.in_features = int(weight.shape[1])
        self.out_features = int(weight.shape[0]) // (2 if gated else 1)
        self.dtype, self.gated = weight.dtype, gated
        self._functions = bindings.functions() if native and _computable(weight) else None
        self.path = "torch" if self._functions is None else "native"
        self.packed = weight if self._functions is None else self._pack(weight.detach())
        self.bias = bias if self._functions is None else self._padded(bias)

    def __call__(
        self,
        x: torch.Tensor,
        *,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        threads: int | None = None,
    ) -> torch.Tensor:
        """[M, K] -> [M, N] in ``out_dtype`` (x's own, or float32 for unrounded logits).

        ``residual`` [M, N] of ``out_dtype`` is added before the one rounding; it may be ``out``.
        ``threads`` defaults to torch's number in the calling thread. Raises ValueError for other
        shapes or dtypes.
        """
        dtype = self.dtype if out_dtype is None else out_dtype
        if dtype not in (self.dtype, torch.float32):
            raise ValueError(f"out_dtype is {dtype}; wanted {self.dtype} or float32")
        if self.gated and residual is not None:
            raise ValueError("a gated layer takes no residual")
        if self.packed.device.type != "cpu":
            y = self._by_torch(x, residual, dtype)
            return y if out is None else out.copy_(y)
        ldx = bindings.check_rows("x", x, self.in_features, self.dtype)
        M, N = int(x.shape[0]), self.out_features
        if out is None:
            out = torch.empty(M, N, dtype=dtype)
        else:
            bindings.check("out", out, (M, N), dtype)
        if residual is not None:
            bindings.check("residual", residual, (M, N), dtype)
        if M == 0:
            return out
        if self._functions is None:
            return out.copy_(self._by_torch(x, residual, dtype))
        self._functions.linear(
            bindings.element_size(self.dtype),
            x.data_ptr(),
            ldx,
            M,
            self.packed.data_ptr(),
            self.packed_outputs,
            self.in_features,
            bindings.address(self.bias),
            bindings.address(residual),
            out.data_ptr(),
            N,
            N if self.gated else 0,
            int(dtype != self.dtype),
            torch.get_num_threads() if threads is None else threads,
        )
        return out

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows ``indices`` [n] of the weight, [n, K]: tied embeddings need no copy of their own."""
        if self.gated:
            raise ValueError("the rows of a gated layer are in another order")
        if self._functions is None:
            return self.packed.index_select(0, indices)
        group, place, K = indices // GROUP, indices % GROUP, self.in_features
        if self.dtype == torch.float32:
            return self.packed.view(-1, K, GROUP)[group, :, place]
        half = GROUP // 2
        tiles = self.packed.view(-1, _up(K, GROUP) // GROUP, 2, half, half, 2)
        return tiles[group, :, place // half, :, place % half].view(len(indices), -1)[:, :K]

    @property
    def packed_outputs(self) -> int:
        """Rows of the packed weight, without the last group's padding."""
        return 2 * _up(self.out_features, GROUP // 2) if self.gated else self.out_features

    def _pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in the kernels' layout (native/kernels.cpp, Layouts)."""
        assert self._functions is not None
        if self.gated:
            weight = _alternate(weight)
        weight = weight.contiguous()
        size = bindings.element_size(weight.dtype)
        N, K = int(weight.shape[0]), self.in_features
        width = _up(K, GROUP) if size == 2 else K
        packed = memory.zeros((_up(N, GROUP) * width,), self.dtype)
        threads = torch.get_num_threads()
        self._functions.pack(size, weight.data_ptr(), K, N, K, packed.data_ptr(), threads)
        return packed

    def _padded(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """The bias in fp32, in the packed weight's order and length."""
        if bias is None:
            return None
        values = bias.detach().float()
        if self.gated:
            values = _alternate(values)
        padded = torch.zeros(_up(int(values.shape[0]), GROUP))
        padded[: values.shape[0]] = values
        return padded

    def _by_torch(
        self, x: torch.Tensor, residual: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """The same by torch; ``out_dtype`` float32 then widens what was rounded to bf16."""
        y = _torch_product(x, self.packed, self.bias)
        if self.gated:
            gate, up = y.chunk(2, dim=1)
            y = torch.nn.functional.silu(gate) * up
        if residual is not None:
            y = y + residual  # in the wider of the two dtypes
        return y.to(dtype)


def _torch_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The fastest way of torch for this dtype and number of rows (docs/decisions/0010).

    On a GPU cuBLAS chooses. On a CPU the weight is streamed faster as the left factor: 1.2
    to 1.4 times in bf16, up to 3.5 times in fp32; at one row and from a few hundred (bf16) or eight
    (fp32) on, F.linear is as good.
    """
    last = _TRANSPOSED_UP_TO.get(weight.dtype, 0) if weight.device.type == "cpu" else 0
    if 2 <= x.shape[0] <= last:
        y = (weight @ x.t()).t()
        return y if bias is None else y + bias
    return torch.nn.functional.linear(x, weight, bias)


def _computable(weight: torch.Tensor) -> bool:
    return weight.dtype in (torch.bfloat16, torch.float32) and weight.device.type == "cpu"


def _alternate(stacked: torch.Tensor) -> torch.Tensor:
    """Gate rows, then up rows -> runs of 16 of each in turn, padded with zeros to whole runs."""
    half, run = stacked.shape[0] // 2, GROUP // 2
    rows = _up(half, run)
    shape = (2, rows, *stacked.shape[1:])
    padded = torch.zeros(shape, dtype=stacked.dtype)
    padded[:, :half] = stacked.reshape(2, half, *stacked.shape[1:])
    runs = padded.reshape(2, rows // run, run, *stacked.shape[1:]).transpose(0, 1)
    return runs.reshape(2 * rows, *stacked.shape[1:])


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
