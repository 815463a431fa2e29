"""Measures of what a generator has learned.

- ``evaluation.evaluate``   `evaluate_generator` and `evaluate_images`: metrics by their names
- ``evaluation.catalogue``  `METRICS`: what there is, what each means, which direction is better
- ``evaluation.report``     what came out, as a table and as a file
"""
