"""The compiled part, which hamgan does without where there is no compiler; all else is in pyproject.toml."""

from setuptools import Extension, setup

# Loaded through ctypes: it needs no Python headers.
setup(
    ext_modules=[Extension("hamgan.data._resize", ["hamgan/data/_resize.c"], extra_compile_args=["-O3"], optional=True)]
)
