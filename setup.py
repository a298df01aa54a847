"""The compiled parts, which hamgan does without where there is no compiler or header; all else is in pyproject.toml."""

from setuptools import Extension, setup

# Loaded through ctypes: they need no Python headers. _jpeg.c needs libjpeg-turbo's jpeglib.h, but not the library.
setup(
    ext_modules=[
        Extension(
            f"hamgan.data.{name}",
            [f"hamgan/data/{name}.c"],
            depends=[f"hamgan/data/{header}" for header in headers],
            extra_compile_args=["-O3"],
            optional=True,
        )
        for name, headers in (("_resize", []), ("_jpeg", ["_huffman.h"]))
    ]
)
