"""Augmentation: differentiable random changes of images before a discriminator, or another network, sees them.

- ``augmentation.diff_augment``  `diff_augment`: colour, translation, cutout (DiffAugment)
- ``augmentation.ada``           `adaptive_augment` and the probability that steers it, `AdaptiveProbability` (ADA)
"""
