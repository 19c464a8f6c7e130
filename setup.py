"""Builds the compiled modules; everything static is in pyproject.toml.

They are optional: where no C compiler works the install goes on, with the engine written in Python,
and says so. What the build looks at in the environment:

HYDROGEN_NO_EXTENSIONS=1        build none (the Python engine only)
HYDROGEN_REQUIRE_EXTENSIONS=1   a build that fails is an error, not a fallback (CI, `make`)
HYDROGEN_DEBUG=1                assertions, lock ranks, bounds checks, -O1 -g
HYDROGEN_SANITIZE=thread        (or address, or undefined) instrument with that sanitizer
HYDROGEN_RACE=1                 plant the race that proves that the thread sanitizer sees ours

Each combination builds in a folder of its own below build/: distutils compares times, not flags,
and would otherwise take an object of one kind for an object of another. The generated C stays there
too, never beside the sources.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup

# Cython's own, which translates the .pyx, where Cython is installed
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError


def flag(name: str) -> bool:
    return os.environ.get(f"HYDROGEN_{name}", "") not in ("", "0")


WANTED, REQUIRED = not flag("NO_EXTENSIONS"), flag("REQUIRE_EXTENSIONS")
DEBUG, RACE = flag("DEBUG"), flag("RACE")
SANITIZE = os.environ.get("HYDROGEN_SANITIZE", "")

if REQUIRED and not WANTED:
    sys.exit(
        "hydrogen: HYDROGEN_NO_EXTENSIONS and HYDROGEN_REQUIRE_EXTENSIONS contradict each other"
    )
if SANITIZE not in ("", "thread", "address", "undefined"):
    sys.exit(f"hydrogen: HYDROGEN_SANITIZE is {SANITIZE!r}; it may be thread, address or undefined")

SOURCES = {
    "hydrogen._codec": "hydrogen/_codec.pyx",
    "hydrogen._core": "hydrogen/_core.pyx",
    "hydrogen.perf._generator": "hydrogen/perf/_generator.pyx",
}
FLAVOUR = "-".join(
    filter(None, ["debug" if DEBUG else "release", SANITIZE, "race" if RACE else ""])
)
MACROS = [("HYDROGEN_DEBUG", "1")] * DEBUG + [("HYDROGEN_PLANTED_RACE", "1")] * RACE
# GCC stops inlining at a size of the whole module, before what each message passes through. Clang
# says that it does not use these.
INLINING = [
    f"--param={name}"
    for name in (
        "max-inline-insns-single=400",
        "max-inline-insns-auto=60",
        "inline-unit-growth=200",
    )
]
CFLAGS = ["-O1", "-g"] if DEBUG or SANITIZE else ["-O3", "-g0", *INLINING]
CFLAGS += ["-UNDEBUG"] * DEBUG + ["-pthread"]
LDFLAGS = ["-pthread"]
if SANITIZE:
    CFLAGS += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
    LDFLAGS += [f"-fsanitize={SANITIZE}"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": DEBUG,
    "initializedcheck": DEBUG,
    "cdivision": not DEBUG,
    "autotestdict": False,  # no __test__ that a stub would have to name
    "show_performance_hints": True,
}
BANNER = """
{line}
hydrogen: {name} was NOT built: {reason}
hydrogen: the install goes on without it, with the slower engine written in Python.
hydrogen: a C compiler and Python's headers build it.
hydrogen: HYDROGEN_REQUIRE_EXTENSIONS=1 makes this an error.
{line}
"""


class BuildExt(build_ext):
    """Cython's build_ext, told where its C goes and what to do when there is no compiler."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.cython_c_in_temp = True
        self.cython_directives = dict(DIRECTIVES)

    def build_extension(self, ext: Extension) -> None:
        """A compiler that fails is survived where that is allowed; an error that Cython finds in a
        .pyx never is.
        """
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            if REQUIRED:
                raise
            print(BANNER.format(line="*" * 100, name=ext.name, reason=error), file=sys.stderr)


def extensions() -> list[Extension]:
    if not WANTED:
        print(
            "hydrogen: HYDROGEN_NO_EXTENSIONS is set: the engine written in Python only",
            file=sys.stderr,
        )
        return []
    missing = [source for source in SOURCES.values() if not os.path.exists(source)]
    if missing:
        sys.exit(f"hydrogen: {', '.join(missing)} not found: this is not a whole source tree")
    return [
        Extension(
            name,
            [source],
            depends=[
                path
                for kind in ("pxd", "h")
                for path in glob(f"hydrogen/**/*.{kind}", recursive=True)
            ],
            include_dirs=["hydrogen/_c", "hydrogen/_engine"],
            define_macros=MACROS,
            extra_compile_args=CFLAGS,
            extra_link_args=LDFLAGS,
            optional=not REQUIRED,
        )
        for name, source in SOURCES.items()
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
    options={"build": {"build_base": f"build/{FLAVOUR}"}},
)
