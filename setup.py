"""Entry point of the build; all metadata is in pyproject.toml."""

from setuptools import setup

setup()
