"""The Triton kernels against dense products: on a GPU where there is one, in Triton's interpreter otherwise.

The interpreter has to be chosen before anything imports triton, which some other test may have done. So one test runs this file in
a process of its own with `TRITON_INTERPRET=1`, and there the same cases run on CPU tensors.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import Size, main, measure, table
from hf_sae.models import TopKConfig, TopKSAE, triton_top_k
from hf_sae.models import triton_ops as ops
from hf_sae.models.outputs import TrainingState
from hf_sae.models.sparse_ops import Transposed
from hf_sae.models.triton_top_k import encode_top_k, top_k


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(params=["interpreter"] if INTERPRETED else [pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    name = "cpu" if request.param == "interpreter" else "cuda"
    if not ops.available(torch.zeros(1, device=name if name == "cpu" or torch.cuda.is_available() else "cpu")):
        pytest.skip("no CUDA device, or no triton")
    return name


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert actual.shape == expected.shape
    if expected.numel():
        scale = expected.double().abs().max().clamp_min(1e-30)
        assert float((actual.double() - expected.double()).abs().max() / scale) < tolerance


class Case:
    """A code with zeros and negative values, a latent on every token and latents on none, and its dense products."""

    def __init__(self, device: str, n: int, k: int, d: int, d_sae: int, dtype=torch.float32, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        scores = torch.rand(n, d_sae, generator=draw)
        scores[:, 1] = 2
        scores[:, d_sae // 2 + 1 :: 2] = -1
        self.indices = scores.topk(k).indices[:, torch.randperm(k, generator=draw)]
        self.values = torch.randn(n, k, generator=draw)
        self.values[::5] = 0
        self.weight, self.target, self.rows = (torch.randn(m, d, generator=draw) for m in (d_sae, n, n))
        self.k, self.d_sae = k, d_sae
        for name in ("values", "weight", "target", "rows"):
            setattr(self, name, getattr(self, name).to(dtype).to(device))
        self.indices = self.indices.to(device)

    @property
    def dense(self) -> Tensor:
        return self.values.new_zeros(len(self.values), self.d_sae, dtype=torch.float64).scatter_add(
            1, self.indices, self.values.double()
        )

    def transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        order, offsets = ops.transpose(self.indices, self.d_sae)
        return order // self.k, offsets, self.values.reshape(-1)[order]


# tokens, k, d, d_sae: one of everything; widths and k that are not powers of two, above and below a tile
SHAPES = [(1, 1, 1, 2), (7, 3, 5, 11), (5, 33, 300, 40), (9, 16, 64, 64), (3, 70, 17, 80)]
HALF = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}  # half an ulp of a result in that dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_gathers_are_the_dense_products(device, shape):
    case = Case(device, *shape)
    reconstruction = case.dense @ case.weight.double()
    rest = case.target.double() - reconstruction
    close(ops.decode(case.values, case.indices, case.weight), reconstruction)
    error, dots = ops.error_and_dots(case.values, case.indices, case.weight, case.target)
    close(error, rest)
    close(dots, (rest @ case.weight.double().T).gather(1, case.indices))
    close(
        ops.dots(case.rows, case.indices, case.weight),
        (case.rows.double() @ case.weight.double().T).gather(1, case.indices),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(device, dtype):
    case = Case(device, 6, 12, 40, 64, dtype)
    weight, dense = case.weight.double(), case.dense
    rest = case.target.double() - dense @ weight
    decoded = ops.decode(case.values, case.indices, case.weight)
    error, dots = ops.error_and_dots(case.values, case.indices, case.weight, case.target)
    assert (decoded.dtype, error.dtype, dots.dtype) == (dtype, dtype, torch.float32)
    close(decoded, dense @ weight, HALF[dtype])
    close(error, rest, HALF[dtype])
    close(dots, (rest @ weight.T).gather(1, case.indices))
    tokens, offsets, weights = case.transposed()
    close(ops.sum_rows(tokens, offsets, weights, case.rows), dense.T @ case.rows.double())


def test_a_large_k_is_gathered_in_two_steps(device):
    case = Case(device, 2, ops.SINGLE_GATHER_K + 5, 33, 700, torch.bfloat16)
    rest = case.target.double() - case.dense @ case.weight.double()
    error, dots = ops.error_and_dots(case.values, case.indices, case.weight, case.target)
    close(error, rest, HALF[torch.bfloat16])
    close(dots, (rest @ case.weight.double().T).gather(1, case.indices))


def test_mixed_dtypes_int32_indices_and_strided_tensors(device):
    case = Case(device, 6, 4, 10, 20)
    weight = case.weight.bfloat16()
    wide = torch.stack([case.values, case.values], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    close(ops.decode(wide, case.indices.int(), weight, torch.float32), case.dense @ weight.double())
    columns = case.weight.T.contiguous().T
    close(ops.decode(case.values, case.indices, columns), case.dense @ case.weight.double())
    close(
        ops.dots(case.rows[:, ::2], case.indices, columns[:, ::2]),
        (case.rows[:, ::2].double() @ columns[:, ::2].double().T).gather(1, case.indices),
    )


@pytest.mark.parametrize(
    ("n", "k", "d_sae"), [(1, 1, 1), (13, 3, 10), (300, 2, 4), (37, 5, 1024), (260, 5, 3000), (50, 3, 1 << 20)]
)
def test_transpose_is_the_stable_sort(device, n, k, d_sae):
    indices = torch.randint(0, d_sae, (n, k), generator=torch.Generator().manual_seed(n))
    indices[:, 0] = d_sae // 2  # on every token
    indices[n // 2 :, -1] = d_sae - 1
    order, offsets = ops.transpose(indices.to(device), d_sae)
    by_latent, expected = indices.reshape(-1).sort(stable=True)
    assert torch.equal(order.cpu(), expected)
    assert torch.equal(offsets.cpu(), torch.searchsorted(by_latent, torch.arange(d_sae + 1)))
    assert order.dtype == offsets.dtype == torch.int64


@pytest.mark.parametrize("shape", SHAPES)
def test_row_sums_are_the_dense_products(device, shape):
    case = Case(device, *shape)
    tokens, offsets, weights = case.transposed()
    total = ops.sum_rows(tokens, offsets, weights, case.rows)
    close(total, case.dense.T @ case.rows.double())
    assert not total[offsets.diff() == 0].any()
    close(total, Transposed(case.indices, case.d_sae).sum_rows(case.values, case.rows))


@pytest.mark.parametrize("n", [16, 17, 40, 150])
def test_rows_longer_than_a_segment(device, monkeypatch, n):
    monkeypatch.setattr(ops, "SEGMENT", 16)
    indices = torch.stack([torch.full((n,), 3), torch.arange(n) % 3], dim=1).to(device)
    draw = torch.Generator().manual_seed(n)
    values, rows, rows_2 = (torch.randn(n, m, generator=draw).to(device) for m in (2, 3, 20))
    order, offsets = ops.transpose(indices, 6)
    dense = torch.zeros(n, 6, dtype=torch.float64, device=device).scatter_add(1, indices, values.double())
    weights = values.reshape(-1)[order]
    one, two = ops.sum_two_rows(order // 2, offsets, weights, rows, 2 * weights, rows_2)
    close(one, dense.T @ rows.double())
    close(two, 2 * dense.T @ rows_2.double())
    alone = ops.sum_rows(order // 2, offsets, weights, rows)
    close(alone, one)
    # a range of the latents: the same bits
    assert torch.equal(ops.sum_rows(order // 2, offsets[2:5], weights, rows), alone[2:4])


@pytest.mark.parametrize(("n", "k", "d", "d_sae"), [(1, 1, 3, 1), (4, 5, 6, 50), (3, 20, 4, 20), (3, 20, 7, 100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoder_and_top_k_in_chunks(device, monkeypatch, n, k, d, d_sae, dtype):
    monkeypatch.setattr(triton_top_k, "MIN_CHUNK", 24)
    monkeypatch.setattr(triton_top_k, "SCRATCH_BYTES", 0)
    monkeypatch.setattr(triton_top_k, "ROWS_AT_A_TIME", 3)
    draw = torch.Generator().manual_seed(d_sae)
    x, weight, bias = (torch.randn(*s, generator=draw).to(dtype).to(device) for s in ((n, d), (d_sae, d), (d_sae,)))
    for b in (bias, None):
        pre = x.double() @ weight.double().T + (0 if b is None else b.double())
        values, indices = encode_top_k(x, weight, b, k)
        assert values.dtype == torch.float32
        assert indices.dtype == torch.int64
        close(values.sort().values, pre.topk(k).values.flip(-1))
        close(values, pre.gather(1, indices))
        assert all(len(row.unique()) == k for row in indices)


def test_a_chunk_wider_than_a_block(device, monkeypatch):
    monkeypatch.setattr(triton_top_k, "MIN_CHUNK", 1300)
    monkeypatch.setattr(triton_top_k, "SCRATCH_BYTES", 0)
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 5, generator=draw).to(device), torch.randn(2700, 5, generator=draw).to(device)
    pre = x.double() @ weight.double().T
    values, indices = encode_top_k(x, weight, None, 6)
    close(values.sort().values, pre.topk(6).values.flip(-1))
    close(values, pre.gather(1, indices))


@pytest.mark.parametrize("limit", [1024, 1])
def test_signed_equal_infinite_and_missing_scores(device, monkeypatch, limit):
    monkeypatch.setattr(triton_top_k, "INSERTION_K", limit)
    inf, nan = float("inf"), float("nan")
    rows = [
        [-3, -1, -2, -4, -5],
        [0, 0, 0, 0, 0],
        [-inf, -inf, 1, -inf, -inf],
        [inf, 3e38, -3e38, 1e-45, 0],
        [nan, 1, 2, -nan, 0],
    ]
    pre = torch.tensor(rows, device=device)
    for k in (1, 2, 3, 5):
        indices = top_k(pre, k)
        assert all(len(row.unique()) == k for row in indices)
        assert torch.equal(
            pre.gather(1, indices).sort().values.nan_to_num(7), pre.topk(k).values.flip(-1).nan_to_num(7)
        )
    if limit > 1:
        assert top_k(pre, 2)[1].sort().values.tolist() == [0, 1]  # of equal values the first latents


def test_a_chunk_boundary_does_not_change_what_is_chosen(device, monkeypatch):
    weight = torch.tensor([1.0, 5, 5, 2, 5, 5, 3], device=device).unsqueeze(1)
    x, chosen = torch.ones(1, 1, device=device), []
    monkeypatch.setattr(triton_top_k, "SCRATCH_BYTES", 0)
    for chunk in (1, 2, 3, 7):
        monkeypatch.setattr(triton_top_k, "MIN_CHUNK", chunk)
        chosen.append(sorted(encode_top_k(x, weight, None, 3)[1][0].tolist()))
    assert chosen == [[1, 2, 4]] * 4


def test_a_k_above_the_insertion_limit(device, monkeypatch):
    monkeypatch.setattr(triton_top_k, "INSERTION_K", 4)
    monkeypatch.setattr(triton_top_k, "MIN_CHUNK", 3)
    monkeypatch.setattr(triton_top_k, "SCRATCH_BYTES", 0)
    x, weight, bias = (torch.randn(*s, device=device) for s in ((5, 6), (40, 6), (40,)))
    values, indices = encode_top_k(x, weight, bias, 10)
    pre = x.double() @ weight.double().T + bias.double()
    close(values.sort().values, pre.topk(10).values.flip(-1))
    close(values, pre.gather(1, indices))


def test_the_same_bits_twice(device, monkeypatch):
    monkeypatch.setattr(ops, "SEGMENT", 16)
    case = Case(device, 40, 2, 20, 6)

    def run() -> list[Tensor]:
        tokens, offsets, weights = case.transposed()
        out = [tokens, offsets, *ops.sum_two_rows(tokens, offsets, weights, case.rows, weights, case.target)]
        few = case.values[:9], case.indices[:9], case.weight
        out += [ops.decode(*few), *ops.error_and_dots(*few, case.target[:9]), ops.dots(case.rows[:9], *few[1:])]
        return [*out, *encode_top_k(case.rows[:4], case.weight, None, 3)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(device, seed):
    draw = random.Random(seed)
    n, d, d_sae = draw.randint(1, 12), draw.randint(1, 70), draw.randint(2, 50)
    k = draw.randint(1, min(d_sae, 40))
    case = Case(device, n, k, d, d_sae, seed=seed)
    weight = case.weight.double()
    rest = case.target.double() - case.dense @ weight
    error, dots = ops.error_and_dots(case.values, case.indices, case.weight, case.target)
    close(error, rest)
    close(dots, (rest @ weight.T).gather(1, case.indices))
    tokens, offsets, weights = case.transposed()
    for total, rows in zip(
        ops.sum_two_rows(tokens, offsets, weights, case.rows, weights, case.target[:, : d // 2 + 1]),
        (case.rows, case.target[:, : d // 2 + 1]),
        strict=True,
    ):
        close(total, case.dense.T @ rows.double())
    values, _ = encode_top_k(case.rows, case.weight, case.weight[:, 0], k)
    close(values.sort().values, (case.rows.double() @ weight.T + weight[:, 0]).topk(k).values.flip(-1))


def test_no_tokens(device):
    case = Case(device, 1, 2, 5, 8)
    values, indices, target = case.values[:0], case.indices[:0], case.target[:0]
    assert ops.decode(values, indices, case.weight).shape == (0, 5)
    assert [t.shape for t in ops.error_and_dots(values, indices, case.weight, target)] == [(0, 5), (0, 2)]
    assert ops.dots(target, indices, case.weight).shape == (0, 2)
    order, offsets = ops.transpose(indices, 8)
    assert order.shape == (0,)
    assert offsets.tolist() == [0] * 9
    assert torch.equal(ops.sum_rows(order, offsets, values.reshape(-1), target), torch.zeros(8, 5, device=device))
    assert [t.shape for t in encode_top_k(target, case.weight, None, 2)] == [(0, 2), (0, 2)]


def test_the_benchmark_measures_every_kernel(device):
    results = measure(Size("tiny", d=8, d_sae=16, k=3), tokens=6, device=device, repeats=1)
    assert {"decode", "error and d(values)", "transpose", "two row sums", "encoder and top-k"} <= {
        r.name for r in results
    }
    lines = table(results).splitlines()
    assert len(lines) == 2 + len(results)
    assert len({len(line) for line in lines}) == 1
    assert all(result.milliseconds > 0 for result in results)


def test_no_graph_is_recorded(device):
    case = Case(device, 3, 2, 5, 8)
    weight = case.weight.requires_grad_()
    assert not ops.decode(case.values, case.indices, weight).requires_grad
    assert not encode_top_k(case.rows, weight, None, 2)[0].requires_grad


def test_shapes_that_do_not_agree_are_named(device):
    case = Case(device, 3, 2, 5, 8)
    with pytest.raises(ValueError, match=r"values \[2, 2\] and indices \[3, 2\]"):
        ops.decode(case.values[:2], case.indices, case.weight)
    with pytest.raises(ValueError, match=r"rows \[3, 4\], indices \[3, 2\], weight \[8, 5\]"):
        ops.dots(case.rows[:, :4], case.indices, case.weight)
    with pytest.raises(ValueError, match=r"between 1 and d_sae = 8, got 9"):
        encode_top_k(case.rows, case.weight, None, 9)
    with pytest.raises(ValueError, match=r"x \[3, 4\], weight \[8, 5\]"):
        encode_top_k(case.rows[:, :4], case.weight, None, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_offsets_beyond_31_bits():
    k, d, d_sae = 3, 4096, 1 << 20  # 2^32 elements, 8.6 GB
    weight = torch.zeros(d_sae, d, dtype=torch.bfloat16, device="cuda")
    weight[-3:] = torch.tensor([1.0, 2.0, 3.0], device="cuda").unsqueeze(1)
    indices = torch.arange(d_sae - k, d_sae, device="cuda").unsqueeze(0)
    out = ops.decode(torch.ones(1, k, device="cuda"), indices, weight)
    assert torch.equal(out, torch.full_like(out, 6))
    values, latents = encode_top_k(out, weight, None, 2)
    assert latents.sort().values.tolist() == [[d_sae - 2, d_sae - 1]]
    assert values.sort().values.tolist() == [[12.0 * d, 18.0 * d]]


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the run in the interpreter")
def test_every_case_in_the_interpreter():
    options = ("-p", "no:cacheprovider", "-m", "not gpu")
    done = _run("-m", "pytest", *options, str(Path(__file__)), TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 45


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="compiles, does not interpret")
def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    done = _run("-m", "tests.models.compile_triton", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.splitlines()[-1] == "1 targets, 8 kernels"


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="about a machine where triton is installed and means nothing")
def test_an_importable_triton_changes_nothing_on_the_cpu():
    assert not ops.available(torch.zeros(1))
    # set after triton was imported, the variable leaves triton's own functions as they are, and a launch would fail;
    # the folder as a package of its own, without the imports of its `__init__`
    code = (
        "import os, sys, types, torch, triton.language\n"
        "package = sys.modules['models'] = types.ModuleType('models'); package.__path__ = sys.argv[1:]\n"
        "from models import triton_ops; os.environ['TRITON_INTERPRET'] = '1'\n"
        "print(triton_ops.available(torch.zeros(1)), 'models.triton_kernels' in sys.modules)"
    )
    done = _run("-c", code, str(Path(ops.__file__).parent))
    assert done.stdout.split() == ["False", "True"], done.stderr[-2000:]


def test_the_benchmark_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"need a CUDA device.*benchmarks\.train_step"):
        main([])


def test_a_training_step_through_the_kernels_has_the_gradients_of_torch(device):
    since = torch.zeros(48, dtype=torch.long)
    since[[2, 7, 11]] = 100
    gradients = []
    for dtype in (torch.float32, torch.float64):  # float64 is left to torch
        torch.manual_seed(0)
        sae = TopKSAE(TopKConfig(d_in=20, d_sae=48, k=5, k_aux=2)).to(device, dtype).train()
        x = torch.randn(33, 20, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        state = TrainingState(normaliser=2.0, tokens_since_fired=since.to(device), dead_after_tokens=10)
        output = sae(x, state=state)
        output.loss.backward()
        gradients.append({"loss": output.loss.detach(), **{name: p.grad for name, p in sae.named_parameters()}})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name].double(), expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_other_dtypes_are_left_to_torch(dtype):
    assert not ops.available(torch.zeros(1, dtype=dtype))
