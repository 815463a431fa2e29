"""Augmentation: differentiable random changes of images before a discriminator, or another network, sees them."""
