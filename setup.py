"""The compiled parts, which hamgan does without where there is no compiler or header; all else is in pyproject.toml."""

from setuptools import Extension, setup

# Loaded through ctypes: they need no Python headers. _jpeg.c needs libjpeg-turbo's jpeglib.h, but not the library.
setup(
    ext_modules=[
        Extension(
            f"hamgan.{package}.{name}",
            [f"hamgan/{package}/{name}.c"],
            depends=[f"hamgan/{package}/{header}" for header in headers],
            extra_compile_args=["-O3", "-Wno-psabi"],
            optional=True,
        )
        for package, name, headers in (
            ("data", "_resize", []),
            ("data", "_jpeg", ["_huffman.h"]),
            ("nn", "_kernels", ["_kernels.h", "_nmf.h", "_convolution.h"]),
        )
    ]
)
