"""The GPU that stands in for one: it computes what the CPU computes and reports what a GPU would refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PLANTED = """
import copy

import pytest
import torch

GPU = torch.device("cuda", 0)


def test_devices_are_told_apart_cuda():
    x = torch.arange(6.0, device="cuda").view(2, 3)
    assert (x.device, x.is_cuda, x.cpu().device) == (GPU, True, torch.device("cpu"))
    for same in (x[:, 1], x.t(), x + 1, torch.zeros_like(x), x.new_tensor([1.0]), copy.deepcopy(x), x[:0]):
        assert same.device == GPU
    assert torch.equal((x @ x.t()).cpu(), x.cpu() @ x.cpu().t())
    assert torch.nn.Linear(3, 2).to("cuda")(x).device == GPU
    assert x.to("cpu", torch.float64).dtype == torch.float64


def test_tensors_of_both_devices_cuda():
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.stack([x, torch.ones(3)])
    assert (x + torch.tensor(1.0)).device == GPU  # a number
    assert torch.equal(torch.ones(3).copy_(x), torch.ones(3))
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_generators_cuda():
    on_gpu = torch.Generator(device="cuda").manual_seed(1)
    assert torch.rand(3, device="cuda", generator=on_gpu).device == GPU
    with pytest.raises(RuntimeError, match="generator on cuda"):
        torch.rand(3, generator=on_gpu)
    with pytest.raises(RuntimeError, match="generator on cpu"):
        torch.rand(3, device="cuda", generator=torch.Generator())


def test_gradients_cuda():
    x = torch.randn(4, 5, device="cuda", requires_grad=True)
    x.cumprod(1).softmax(0).square().sum().backward()
    y = x.detach().cpu().requires_grad_()
    y.cumprod(1).softmax(0).square().sum().backward()
    assert x.grad.device == GPU
    torch.testing.assert_close(x.grad.cpu(), y.grad)


def test_graphs_cuda():
    x, graph = torch.ones(3, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x * 2).sum()
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            y.item()
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            torch.ones(3).to("cuda")
    x.fill_(5.0)
    graph.replay()
    assert y.item() == 30


def test_ops_run_their_kernels_cuda():
    from cips3d.ops import bias_leaky_relu, kernels

    x = torch.randn(2, 3, 4, device="cuda")
    assert kernels.take(x) and not kernels.take(x.cpu())
    torch.testing.assert_close(bias_leaky_relu(x).cpu(), bias_leaky_relu(x.cpu()))
    with pytest.raises(ValueError, match="bias"):
        bias_leaky_relu(x, torch.zeros(3))


def test_it_is_left_out():
    raise AssertionError
"""


def test_planted_mistakes(tmp_path: Path) -> None:
    (tmp_path / "test_planted.py").write_text(PLANTED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "stand_in_gpu", "-c", os.devnull, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 passed, 1 deselected" in ended.stdout
