"""What a file holds is found by names and shapes, in whatever it is nested."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from convert.small_networks import (
    CIPS3D_CONFIG,
    CIPS_CONFIG,
    PIGAN_CONFIG,
    PIGAN_DISCRIMINATOR_CONFIG,
    STYLEGAN2_CONFIG,
    STYLEGAN2_DISCRIMINATOR_CONFIG,
    SYSTEMS,
    made,
)
from reference_records import record, requires_record, state
from torch import Tensor

from cips3d.checkpoints.restricted_pickle import InertClass, InertObject
from cips3d.convert import from_reference, to_reference
from cips3d.convert.detect import (
    SIGNATURES,
    averages_of,
    box_side_of,
    contents_of,
    describe,
    detect_system,
    module_parameters,
    module_state,
    with_averages,
)
from cips3d.errors import UserError
from cips3d.models.cips3d import CIPS3DConfig
from cips3d.models.pigan import PiGAN
from cips3d.models.residual_discriminator import ResidualDiscriminatorConfig


def inert(name: str, children: dict[str, InertObject] | None = None, **attributes: Any) -> InertObject:
    """A module as it is read."""
    children = children or {}
    return InertObject(InertClass("siren.siren", name), {"_parameters": {}, "_modules": children, **attributes})


def weights(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([value]) for name, value in values.items()}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_is_recognised(system: str) -> None:
    _, original = made(system)
    assert detect_system(original) == system


@pytest.mark.parametrize(
    ("name", "prefix", "system"),
    [
        pytest.param(name, prefix, system, marks=requires_record(name))
        for name, prefix, system in (
            ("cips3d_generator_r16", "state/", "cips3d"),
            ("cips3d_discriminator_r32", "state/", "cips3d-discriminator"),
            ("cips3d_discriminator_aux_r64", "state/", "cips3d-discriminator"),
            ("pigan_generator_r16", "state/", "pigan"),
            ("cips_skip_r32", "state/", "cips"),
            ("stylegan2_r32", "gen/", "stylegan2"),
            ("stylegan2_r32", "disc/", "stylegan2-discriminator"),
        )
    ],
)
def test_published_names_are_recognised(name: str, prefix: str, system: str) -> None:
    assert detect_system(state(record(name), prefix)) == system


def test_others_are_not() -> None:
    with pytest.raises(UserError) as refused:
        detect_system(weights(a=1, b=2, c=3, d=4))
    assert "a, b, c and 1 more" in str(refused.value)
    assert all(system in str(refused.value) for system in SIGNATURES)
    with pytest.raises(UserError, match=r"pigan or stylegan2.*--system"):
        detect_system({**made("stylegan2")[1], **made("pigan")[1]})


def test_networks_are_found_where_they_lie() -> None:
    a, b = weights(x=1), weights(y=2)
    adam = {"state": {0: {"exp_avg": torch.zeros(1)}}, "param_groups": []}
    loaded = {
        "g": a,
        "optim": adam,
        "nested": {"d": b, "lr": 0.1},
        "latent_avg": torch.zeros(3),
        "state_dict": {"step": 7},
    }
    contents = contents_of(loaded)
    assert [(network.label, network.state) for network in contents.networks] == [("g", a), ("nested.d", b)]
    assert contents.others == ("optim", "nested.lr", "state_dict", "latent_avg")
    assert contents.step == 7
    alone = contents_of({**a, "epoch": 3})
    assert [(network.label, network.state) for network in alone.networks] == [("", a)]
    assert alone.others == ("epoch",) and alone.step is None
    for nothing in (None, 3, [a], {}, adam, {"a": {"b": {"c": {"d": {"e": a}}}}}):
        assert contents_of(nothing).networks == ()


def test_parallel_prefix_is_taken_off() -> None:
    (network,) = contents_of({"module.x": torch.zeros(1), "module.y.z": torch.ones(1)}).networks
    assert list(network.state) == ["x", "y.z"]


def test_whole_modules() -> None:
    layer = inert("Layer", _parameters={"weight": torch.ones(2), "bias": None})
    layer.attributes["_buffers"] = {"kept": torch.zeros(1), "passing": torch.zeros(1), "none": None}
    layer.attributes["_non_persistent_buffers_set"] = {"passing"}
    root = inert("Net", {"b": layer, "nothing": None, "a": inert("Layer", _parameters=weights(w=3))}, step=12)  # type: ignore[dict-item]
    root.attributes["_parameters"] = weights(first=0)
    assert list(module_state(root)) == ["first", "b.weight", "b.kept", "a.w"]
    assert list(module_parameters(root)) == ["first", "b.weight", "a.w"]
    contents = contents_of(root)
    assert contents.networks[0].module is root and contents.step == 12
    assert list(contents_of({"generator": root}).networks[0].state) == ["first", "b.weight", "b.kept", "a.w"]


def test_parameters_lie_in_torch_s_order() -> None:
    original = torch.nn.Sequential(
        torch.nn.Linear(1, 2), torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.PReLU())
    )

    def read(module: torch.nn.Module) -> InertObject:
        children = {name: read(child) for name, child in module.named_children()}
        own = {"_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
        return inert(type(module).__name__, children, **own)

    assert list(module_parameters(read(original))) == [name for name, _ in original.named_parameters()]
    assert list(module_state(read(original))) == list(original.state_dict())


def test_averages_go_onto_the_generator() -> None:
    root = inert("Net", {"layer": inert("Layer", _parameters=weights(w=1, b=2))})
    root.attributes["_buffers"] = weights(table=5)
    (network,) = contents_of(root).networks
    ema = InertObject(
        InertClass("torch_ema.ema", "ExponentialMovingAverage"),
        {"shadow_params": [torch.tensor([3.0]), torch.tensor([4.0])]},
    )
    averages = averages_of(ema)
    assert averages is not None and averages_of(ema.attributes) == averages
    averaged = with_averages(network, averages)
    assert {key: value.item() for key, value in averaged.state.items()} == {"table": 5, "layer.w": 3, "layer.b": 4}
    assert network.state["layer.w"].item() == 1
    with pytest.raises(UserError, match="averages 1 parameters where the generator has 2"):
        with_averages(network, averages[:1])
    with pytest.raises(UserError, match=r"average of layer.b has shape \[2\] where \[1\]"):
        with_averages(network, [averages[0], torch.zeros(2)])
    for other in (None, root, weights(a=1), {"shadow_params": [1]}, {"shadow_params": []}):
        assert averages_of(other) is None


def test_box_of_whole_modules() -> None:
    assert box_side_of(inert("G", {"siren": inert("TALLSIREN")})) is None
    warped = inert(
        "G", {"siren": inert("SPATIALSIRENBASELINE", {"gridwarper": inert("UniformBoxWarp", scale_factor=2 / 0.3)})}
    )
    assert box_side_of(warped) == pytest.approx(0.3)


def test_absurd_files_end() -> None:
    for name, message in (("", "more than 10000 parts"), ("self", "a part of an absurd name, 'self.self")):
        root = inert("Net")
        root.attributes["_modules"][name] = root
        with pytest.raises(UserError, match=message):
            contents_of(root)
    shared = inert("Net", {str(k): inert("Part") for k in range(200)})
    held = {str(k): torch.zeros(1) for k in range(1000)}
    for part in shared.attributes["_modules"].values():
        part.attributes["_parameters"] = held
    with pytest.raises(UserError, match="more than 100000 weights"):
        contents_of(shared)
    with pytest.raises(UserError, match="networks have more than 100000 weights"):
        contents_of({str(k): held for k in range(200)})
    everything: dict[Any, Any] = {}
    for key in range(2000):
        everything[key] = everything
    with pytest.raises(UserError, match="more than 1000 entries"):
        contents_of(everything)
    with pytest.raises(UserError, match=r"absurd name, '\\x1b\[2J'"):
        contents_of({"\x1b[2J": torch.zeros(1)})
    assert contents_of({"\x07": 1, "a": weights(b=1)}).others == ("'\\x07'",)


def test_descriptions() -> None:
    assert describe(CIPS3DConfig()) == "128-wide NeRF, 32 features, 9 blocks of 512"
    assert describe(CIPS3D_CONFIG) == "16-wide NeRF, 4 features, 9 blocks of 8"
    assert describe(PIGAN_CONFIG) == "3 layers of 6, a box of 0.24"
    assert describe(replace(PIGAN_CONFIG, box_warp=False)) == "3 layers of 6, no box"
    assert describe(replace(PIGAN_CONFIG, grid_resolution=4)) == "3 layers of 6, 4³ embeddings, a box of 0.24"
    assert describe(CIPS_CONFIG) == "skip variant, 8 x 8, blocks of 5-4"
    assert describe(STYLEGAN2_CONFIG) == "16 x 16, 6-5-4 channels"
    assert describe(STYLEGAN2_DISCRIMINATOR_CONFIG) == "16 x 16, 6-5-4 channels"
    assert describe(ResidualDiscriminatorConfig()) == (
        "up to 1024 x 1024, 512-256-128-64-32 channels; auxiliary 256-128-64-32"
    )
    assert describe(PIGAN_DISCRIMINATOR_CONFIG) == "up to 8 x 8, pooled, coordinates, 6 outputs"


@pytest.mark.parametrize("system", SYSTEMS)
def test_state_dicts_there_and_back(system: str) -> None:
    """`from_reference` and `to_reference`, by the module alone."""
    module, written = made(system)
    options = {"box_warp": module.config.box_warp} if isinstance(module, PiGAN) else {}
    again = from_reference(written, system, **options)  # type: ignore[call-overload]
    assert type(again) is type(module)
    assert to_reference(again).keys() == written.keys()
    assert all(torch.equal(value, written[name]) for name, value in to_reference(again).items())


def test_only_published_systems_are_written() -> None:
    with pytest.raises(UserError, match="Linear is no network of a published system"):
        to_reference(torch.nn.Linear(2, 2))
