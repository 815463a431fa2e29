"""cips3d: 3-D-aware GANs learned from unposed single photographs.

Where the method is found:

- ``cips3d.cameras``   pose distributions, cameras, rays
- ``cips3d.ops``       the operations that kernels accelerate, each with its plain PyTorch reference
- ``cips3d.models``    mapping networks, NeRF, INR, generator, discriminators
- ``cips3d.data``      image folders and archives, synthetic heads
- ``cips3d.training``  losses, schedule, the training step and loop, checkpoints
"""

__version__ = "0.1.0"
