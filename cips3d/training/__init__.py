"""Training: the step, the loop around it, and what a run writes.

- ``training.loop``        `train`, which does what ``python -m cips3d.train`` does
- ``training.config``      `TrainConfig`: all of a run; `Stage`, `Amp` and `Reports` in it
- ``training.presets``     `preset`: named configurations, to be changed by `dataclasses.replace`
- ``training.losses``      `adversarial_loss` by name; R1, R2, gradient penalty, path lengths, pose, top-k
- ``training.ema``         `update_ema`
- ``training.step``        `TrainingStep`: the algorithm, on a `TrainingState` (``training.state``)
"""
