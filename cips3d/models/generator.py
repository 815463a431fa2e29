"""What every generator of the family offers to training and to the commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from cips3d.errors import UserError
from cips3d.models.compiled import CompiledRender
from cips3d.models.precision import checked_precision
from cips3d.models.view import Picture, View
from cips3d.ops.checks import check_input, check_shape
from cips3d.ops.precision import Precision

MEAN_STYLE_SAMPLES, MEAN_STYLE_SEED = 10_000, 0  # z that the mean style is taken over

# What the mapping of a generator makes of z: a NamedTuple of tensors, images first.
StylesT = TypeVar("StylesT", bound="tuple[Tensor, ...]")
ConfigT = TypeVar("ConfigT", bound="GeneratorConfig")


def styles_of(like: StylesT, tensors: Iterable[Tensor]) -> StylesT:
    """Styles of the kind of `like`, holding these tensors."""
    return type(like)(*tensors)  # a NamedTuple takes its fields one by one


def check_styles(styles: object, kind: type[tuple[Tensor, ...]]) -> None:
    """Raise TypeError unless styles are of the kind that a generator's mapping gives; z, above all, is not."""
    if not isinstance(styles, kind):
        raise TypeError(f"styles must be {kind.__name__}, as mapping gives them, got {type(styles).__name__}")


def check_style(name: str, style: Tensor, width: int, layers: int, weight: Tensor) -> None:
    """Raise, naming the style, unless it is [B, width] or [B, layers, width] for a network of these weights."""
    check_input(name, style, weight)
    check_shape(name, style, (None, width) if style.dim() == 2 else (None, layers, width))


def truncated(styles: StylesT, mean: StylesT, psi: float) -> StylesT:
    """mean + ψ (style - mean): ψ < 1 trades variety for typical images.

    Args:
        styles: a generator's styles of B images.
        mean: the centre, with one image (`Generator.mean_styles`).
        psi: ψ; 1 leaves styles as they are, 0 gives the mean.
    """
    return styles_of(styles, [torch.lerp(m, s, psi) for s, m in zip(styles, mean, strict=True)])


def chosen(styles: StylesT, images: Tensor | slice) -> StylesT:
    """The styles of some images."""
    return styles_of(styles, [s[images] for s in styles])


def styles_by_layer(style: Tensor, layers: int) -> Tensor:
    """[B, layers, width] of one style for all layers [B, width], or of such styles unchanged."""
    return style if style.dim() == 3 else style[:, None].expand(-1, layers, -1)


def with_same_layers(first: StylesT, second: StylesT) -> tuple[StylesT, StylesT]:
    """Both styles; what one of them has by layer and the other the same for all layers is by layer in both."""

    def like(styles: StylesT, others: StylesT) -> StylesT:
        pairs = zip(styles, others, strict=True)
        return styles_of(styles, [s if o.dim() <= s.dim() else styles_by_layer(s, o.shape[1]) for s, o in pairs])

    return like(first, second), like(second, first)


def mixed_layers(first: Tensor, second: Tensor, layer: int, layers: int) -> Tensor:
    """[B, layers, width]: `first` below `layer`, `second` from it on.

    Raises:
        ValueError: there is no such layer, or there are not as many images on both sides.
    """
    if not 0 <= layer <= layers:
        raise ValueError(f"layer must be 0 to {layers}, got {layer}")
    if len(first) != len(second):
        raise ValueError(f"both styles must be of as many images, got {len(first)} and {len(second)}")
    return torch.cat([styles_by_layer(first, layers)[:, :layer], styles_by_layer(second, layers)[:, layer:]], dim=1)


def at_layers(vectors: Tensor, chosen_layers: Sequence[int], layers: int) -> Tensor:
    """[D, layers, width] with vectors [D, width] at the chosen layers and 0 at all others."""
    placed = vectors.new_zeros(len(vectors), layers, vectors.shape[1])
    placed[:, list(chosen_layers)] = vectors[:, None]
    return placed


class GeneratorConfig:
    """Dimensions of a generator: the base of frozen dataclasses whose first field, `system`, is the model's name."""

    closes_pictures: ClassVar[bool] = False
    """published pictures give the remaining transmittance to the last sample (`last_back`); training does not"""

    def at(self: ConfigT, resolution: int) -> ConfigT:
        """The same generator for pictures of another size, where its networks depend on the size."""
        return self


class ParameterGroups(NamedTuple):
    """Networks by their part in the method, each with a learning rate of its own.

    Attributes:
        nerf: what gives the volume.
        mapping: what gives styles.
        inr: what gives pixels.
    """

    nerf: tuple[nn.Module, ...]
    mapping: tuple[nn.Module, ...]
    inr: tuple[nn.Module, ...]


class WeightParts(NamedTuple):
    """All weights and buffers, by prefixes of their names in the state dict, for interpolation between two models.

    Attributes:
        blocks: what makes the picture, in order of depth, each with the colours it gives.
        mapping: what gives the blocks their styles.
        shape: the 3-D part with its mapping, where the blocks only paint.
    """

    blocks: tuple[tuple[str, ...], ...]
    mapping: tuple[str, ...]
    shape: tuple[str, ...] = ()


class Generator(nn.Module, ABC, Generic[StylesT]):
    """A generator of images: z → `mapping` → styles → `render` → pictures.

    A model of the family is one subclass and its configuration (`cips3d.models.family`); training, rendering and
    evaluation know it by these methods alone.
    """

    config: GeneratorConfig
    """its dimensions"""
    is_3d: ClassVar[bool]
    """cameras change the picture, and it has a depth"""
    has_aux_image: ClassVar[bool] = False
    """the volume can be pictured on its own (`View.return_aux`)"""
    has_view_dependence: ClassVar[bool] = False
    """colours depend on where they are seen from (`View.lock_view`)"""
    has_windows: ClassVar[bool] = False
    """parts of a picture can be made without the rest (`View.window`)"""
    has_one_size: ClassVar[bool] = False
    """its weights are for pictures of one size (`fixed_resolution`)"""
    style_layers: int = 0
    """layers that can take a style each (`mixed`); 0: the model has one style for all"""

    fixed_resolution: int | None = None
    """side of the only pictures it makes; None: any"""

    @property
    @abstractmethod
    def z_dims(self) -> tuple[int, ...]:
        """Widths of the z that `mapping` takes."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next((weight.dtype for weight in self.parameters()), torch.float32)

    def sample_z(self, batch: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Standard normal z [batch, width] of the weights' dtype, one for each of `z_dims`."""
        return self._placed(self._drawn(batch, generator))

    def z_of_seeds(self, seeds: Sequence[int]) -> tuple[Tensor, ...]:
        """`sample_z` of as many as there are seeds, each drawn on the CPU by a random generator of its own."""
        draws = [self._drawn(1, torch.Generator().manual_seed(seed)) for seed in seeds]
        return self._placed(torch.cat(parts) for parts in zip(*draws, strict=True))

    def _drawn(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        device = self.device if generator is None else generator.device
        return tuple(torch.randn(batch, width, generator=generator, device=device) for width in self.z_dims)

    def _placed(self, z: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """z on the device and in the dtype of the weights; one transfer each, since a GPU waits for every transfer."""
        return tuple(drawn.to(self.device, self.dtype) for drawn in z)

    @abstractmethod
    def mapping(self, *z: Tensor) -> StylesT:
        """Styles of z [B, width], one for each of `z_dims`."""

    @torch.no_grad()
    def mean_styles(self, count: int = MEAN_STYLE_SAMPLES) -> StylesT:
        """Mean styles [1, ...] of `count` random z, the centre of truncation; compute once and keep.

        Raises:
            ValueError: the count is less than 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        random = torch.Generator().manual_seed(MEAN_STYLE_SEED)
        styles = self.mapping(*self.sample_z(count, generator=random))
        return styles_of(styles, [s.mean(0, keepdim=True) for s in styles])

    def mixed(self, first: StylesT, second: StylesT, layer: int) -> StylesT:
        """Styles whose layers from `layer` (0 to `style_layers`) on are those of `second` (style mixing).

        Raises:
            ValueError: the model has one style for all layers, or no such layer.
        """
        raise ValueError(f"{type(self).__name__} has no layers whose styles could be mixed")

    @abstractmethod
    def render(self, styles: StylesT, view: View) -> Picture:
        """Pictures of styles."""

    def compiled_render(self, view: View) -> CompiledRender[StylesT]:
        """`render` of one view again and again, without gradients: on a GPU one replay a call (see `CompiledRender`).

        Example:
            >>> from cips3d.cameras import Cameras
            >>> from cips3d.models.cips3d import CIPS3D
            >>> generator, front = CIPS3D(), torch.full((2,), torch.pi / 2)
            >>> cameras = Cameras.from_angles(front, front + torch.tensor([-0.3, 0.3]))
            >>> render = generator.compiled_render(View(16, cameras, jitter=False))
            >>> render(generator.mapping(*generator.sample_z(len(cameras)))).image.shape
            torch.Size([2, 3, 16, 16])
        """
        return CompiledRender(self, view)

    def density(self, styles: StylesT, points: Tensor) -> Tensor:
        """Raw density [B, N] at points [B, N, 3] in scene units, of 3-D generators.

        Raises:
            ValueError: the model has no volume.
        """
        raise ValueError(f"{type(self).__name__} has no volume whose density could be asked for")

    def weight_parts(self) -> WeightParts:
        """All weights by block and network.

        Raises:
            ValueError: the model has no such parts.
        """
        raise ValueError(f"{type(self).__name__} has no blocks whose weights could be told apart")

    def style_weights(self) -> dict[str, tuple[Tensor, ...]]:
        """For each branch of the styles, one matrix [out, width] a layer: what a vector of the branch is multiplied by.

        In most models the vector is the style s, and layer k is modulated by (matrix k) s + bias. {}: the model has no
        such matrices.
        """
        return {}

    def style_offsets(self, branch: str, vectors: Tensor, layers: Sequence[int]) -> StylesT:
        """Offsets that move some layers of a branch along vectors when they are added to styles by layer.

        Args:
            branch: one of `style_weights`.
            vectors: [D, width], in the space that its matrices take.
            layers: which of its layers move; all others stay.

        Returns:
            Styles of D offsets, [D, layers, ...] each.

        Raises:
            ValueError: the model has no such branch.
        """
        raise ValueError(f"branch must be one of {list(self.style_weights())}, got {branch!r}")

    @abstractmethod
    def parameter_groups(self) -> ParameterGroups:
        """All parameters, by learning rate."""

    def frozen_part(self) -> tuple[nn.Module, ...]:
        """What a stage with `freeze_nerf` freezes: the 3-D part; nothing in 2-D."""
        return ()

    def set_precision(
        self,
        precision: Precision | None = None,
        *,
        nerf: Precision | None = None,
        inr: Precision | None = None,
        fast_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Set how exactly products are computed from now on; neither weights nor configuration hold this setting.

        "highest" and "high" leave pixels to PyTorch's float32 products, which are TF32's where
        `torch.set_float32_matmul_precision` says so; with "fast" they are of 16 bits, colours apart. The volume's
        products are those of `render_rays`. Relative errors of pictures with "fast": about 1e-3 from the volume, 1e-2
        from bfloat16 pixels. The convolutions of StyleGAN2 and CIPS, which cuDNN takes TF32 for by itself, are of
        float32 with "highest"; their gradients are so inside `cips3d.ops.precision.product_precision`, as in training.

        Args:
            precision: of all parts, see `Precision`; None: as PyTorch is set.
            nerf, inr: of the volume and of the pixels, where these differ from `precision`.
            fast_dtype: what "fast" rounds pixels to, float16 or bfloat16.

        Raises:
            ValueError: there is no such precision.
            UserError: the model does not have the part, or computes in full precision only.
        """
        for asked in (precision, nerf, inr):
            if checked_precision(asked) == "fast":
                raise UserError(
                    f'{type(self).__name__} computes in full precision only; leave out "fast" or, in training, '
                    "--amp.nerf and --amp.inr"
                )
