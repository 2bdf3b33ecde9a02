"""Compiling the native kernels: once, atomically, and with a clean way out where it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nexusbench.kernels.native import build

ROOT = Path(__file__).parents[2]


def can_build():
    try:
        build.library()
    except build.Unavailable as reason:
        return str(reason)
    return ""


needs_compiler = pytest.mark.skipif(bool(can_build()), reason=f"cannot compile: {can_build()}")

PRINT_NOTE = "from nexusbench.kernels.native import bindings; print(bindings.note())"
USE = """
import torch
from nexusbench.kernels import fused
from nexusbench.kernels.linear import LinearLayer
from nexusbench.kernels.native import bindings
torch.manual_seed(0)
x, w, b = torch.randn(3, 40), torch.randn(50, 40), torch.randn(50)
linear = LinearLayer(w, b)
y = linear(x, residual=torch.ones(3, 50))
assert (y - (x @ w.t() + b + 1)).abs().max() < 1e-4
assert LinearLayer(w, gated=True)(x.contiguous()).shape == (3, 25)
assert fused.silu_mul(x).shape == (3, 20)
assert fused.rms_norm(x, torch.ones(40), 1e-5).shape == (3, 40)
assert fused.argmax(x).tolist() == x.argmax(-1).tolist()
print(linear.path, "|", bindings.note())
"""


def python(code, **environment):
    variables = {**os.environ, build.OFF: "", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def output(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def test_levels_are_chosen_by_cpu_flags():
    base = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "avx2"}
    assert build.usable_levels(frozenset()) == []
    assert build.usable_levels(frozenset(base - {"avx512vl"})) == []
    assert build.usable_levels(frozenset(base)) == ["avx512"]
    assert build.usable_levels(frozenset(base | {"avx512_bf16", "sse"})) == [
        "avx512_bf16",
        "avx512",
    ]
    tiles = {"avx512_bf16", "amx_tile", "amx_bf16"}
    assert build.usable_levels(frozenset(base | tiles)) == ["amx", "avx512_bf16", "avx512"]


def test_every_header_is_built_with_and_part_of_the_name(tmp_path):
    sources = build._sources()
    wanted = {
        line.split('"')[1]
        for text in sources.values()
        for line in text.decode().splitlines()
        if line.startswith('#include "')
    }
    assert wanted == set(sources) - {build.MAIN}
    # A compiler that lists what it was given.
    fake = tmp_path / "compiler"
    fake.write_text('#!/bin/sh\nfor last; do :; done\nls "$(dirname "$last")" > "$last"\n')
    fake.chmod(0o755)
    first = build._compiled(str(fake), tmp_path, sources, "avx512")
    header = sorted(wanted)[0]
    changed = sources | {header: sources[header] + b"\n"}
    assert build._compiled(str(fake), tmp_path, changed, "avx512") != first
    assert build._compiled(str(fake), tmp_path, sources, "avx512") == first
    assert set(first.read_text().split()) >= set(sources)


@pytest.mark.slow
def test_the_switch_turns_them_off():
    pytest.importorskip("torch", reason="kernels need torch")
    text = output(python(USE, NEXUSBENCH_NO_NATIVE="1"))
    assert text == "torch | native kernels off: NEXUSBENCH_NO_NATIVE is set"


def test_importing_the_package_does_not_import_torch():
    code = "import sys, nexusbench.kernels; print('torch' in sys.modules)"
    assert output(python(code)) == "False"


@pytest.mark.slow
def test_a_missing_or_broken_compiler_is_a_note(tmp_path):
    pytest.importorskip("torch", reason="kernels need torch")
    if not build.usable_levels(build.cpu_flags()):
        pytest.skip("the CPU has no AVX-512")
    cache = {"NEXUSBENCH_CACHE": str(tmp_path / "cache")}
    text = output(python(USE, CXX="no-such-compiler", **cache))
    assert text == "torch | native kernels off: no C++ compiler (no-such-compiler) is installed"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'kernels.cpp:1: error: it is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    text = output(python(USE, CXX=str(broken), **cache))
    assert text.startswith("torch | native kernels off: ")
    assert "failed: kernels.cpp:1: error: it is broken" in text
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").rglob(".build-*"))


@pytest.mark.slow
def test_a_compiler_that_writes_rubbish_is_a_note(tmp_path):
    pytest.importorskip("torch", reason="kernels need torch")
    if not build.usable_levels(build.cpu_flags()):
        pytest.skip("the CPU has no AVX-512")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text('#!/bin/sh\nfor last; do :; done\necho nothing > "$last"\n')
    rubbish.chmod(0o755)
    text = output(python(USE, CXX=str(rubbish), NEXUSBENCH_CACHE=str(tmp_path / "cache")))
    assert text.startswith("torch | native kernels off: the compiled file cannot be loaded")


def test_a_folder_open_to_others_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "nexusbench" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setenv(build.CACHE, str(tmp_path))
    with pytest.raises(build.Unavailable, match="not the user's alone"):
        build.cache_folder()
    folder.chmod(0o700)
    assert build.cache_folder() == folder
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(build.CACHE, str(tmp_path / "file"))
    with pytest.raises(build.Unavailable, match="no cache folder"):
        build.cache_folder()


def test_another_system_is_told_so(monkeypatch):
    monkeypatch.delenv(build.OFF, raising=False)
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(build.Unavailable, match="only Linux on x86-64"):
        build.library()
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build, "cpu_flags", frozenset)
    with pytest.raises(build.Unavailable, match="no AVX-512"):
        build.library()


@needs_compiler
@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path):
    pytest.importorskip("torch", reason="kernels need torch")
    cache = {"NEXUSBENCH_CACHE": str(tmp_path)}
    notes = [output(process) for process in [python(USE, **cache) for _ in range(2)]]
    assert notes[0] == notes[1]
    assert notes[0].startswith("native | native kernels: kernels-")
    made = list(tmp_path.rglob("kernels-*.so"))
    assert len(made) == 1
    stamp = made[0].stat().st_mtime_ns
    assert output(python(PRINT_NOTE, **cache)).endswith(made[0].name)
    assert made[0].stat().st_mtime_ns == stamp  # the second time nothing is compiled
    assert not list(tmp_path.rglob(".build-*"))


@needs_compiler
def test_every_level_that_the_cpu_has_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="kernels need torch")
    from nexusbench.kernels.native import bindings

    torch.manual_seed(1)
    weight, x = torch.randn(70, 96).bfloat16(), torch.randn(40, 96).bfloat16()
    exact = x.double() @ weight.double().t()
    for level in build.usable_levels(build.cpu_flags()):
        functions = bindings.Functions(build.library(level))
        assert functions.level() >= 0
        packed = torch.empty(96 * 96, dtype=torch.bfloat16)
        functions.pack(2, weight.data_ptr(), 96, 70, 96, packed.data_ptr(), 1)
        for rows in (1, 13, 40):
            y = torch.empty(rows, 70)
            functions.linear(
                2, x.data_ptr(), 96, rows, packed.data_ptr(), 70, 96, None, None, y.data_ptr(),
                70, 0, 1, 2,
            )  # fmt: skip
            assert (y - exact[:rows]).abs().max() < 1e-4, level
