"""Build entry: the metadata is in pyproject.toml; csrc extensions are added here."""

from setuptools import setup

setup()
