"""The compiled parts, which hamgan does without where there is no compiler or header; all else is in pyproject.toml."""

from setuptools import Extension, setup

# Loaded through ctypes: they need no Python headers. _jpeg.c needs libjpeg-turbo's jpeglib.h, but not the library.
setup(
    ext_modules=[
        Extension(f"hamgan.data.{name}", [f"hamgan/data/{name}.c"], extra_compile_args=["-O3"], optional=True)
        for name in ("_resize", "_jpeg")
    ]
)
