"""Builds the sdist and, from it, the wheel; checks what is in them; installs the wheel into a clean
environment.

Run by tox's `dist`. Not a linter of metadata: it asks the questions that matter to whoever installs
this project.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDIST_HAS = [
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "pyproject.toml",
    "setup.py",
    "constraints.txt",
    "tests/conftest.py",
    "tests/faults/inject.c",
]
WHEEL_HAS = [
    "hydrogen/py.typed",
    "hydrogen/_codec.pyi",
    "hydrogen/_core.pyi",
    "hydrogen/_py/__init__.py",
    "hydrogen/contrib/prometheus.py",
    "hydrogen/perf/__init__.py",
]


def build(out: Path) -> tuple[Path, Path]:
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True)
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def sources(*suffixes: str) -> set[str]:
    return {
        str(p.relative_to(ROOT)) for p in (ROOT / "hydrogen").rglob("*") if p.suffix in suffixes
    }


def complaints(sdist: Path, wheel: Path) -> list[str]:
    """What each file lacks, and what it has that it should not."""
    with tarfile.open(sdist) as tar:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
        [metadata] = [
            archive.read(n).decode() for n in in_wheel if n.endswith(".dist-info/METADATA")
        ]
    found = [
        f"sdist lacks {n}"
        for n in sorted({*SDIST_HAS, *sources(".py", ".pyi", ".pyx", ".pxd")} - in_sdist)
    ]
    found += [f"wheel lacks {n}" for n in sorted({*WHEEL_HAS, *sources(".py", ".pyi")} - in_wheel)]
    found += [
        f"wheel lacks the compiled {n}"
        for n in ("_codec", "_core", "perf/_generator")
        if not has_module(in_wheel, n)
    ]
    generated = {n.removesuffix(".pyx") + ".c" for n in in_sdist if n.endswith(".pyx")}
    found += [
        f"sdist has {n}" for n in sorted(in_sdist) if n in generated or n.endswith((".so", ".pyc"))
    ]
    found += [
        f"wheel has {n}" for n in sorted(in_wheel) if n.endswith((".c", ".pyx", ".pxd", ".pyc"))
    ]
    found += [
        f"wheel has {n}"
        for n in sorted(in_wheel)
        if not n.startswith(("hydrogen/", "hydrogen_server-"))
    ]
    found += [
        f"the wheel needs: {n}"
        for n in metadata.splitlines()
        if n.startswith("Requires-Dist") and "extra" not in n
    ]
    return found


def has_module(names: set[str], module: str) -> bool:
    return any(n.startswith(f"hydrogen/{module}.") and n.endswith(".so") for n in names)


def try_install(wheel: Path) -> None:
    """The wheel alone, in an environment that has nothing else, seen from a folder that is not the
    source tree.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)],
            check=True,
        )
        program = (
            "import hydrogen, hydrogen._core, hydrogen.perf; assert hydrogen.engine == 'compiled', "
            "hydrogen.engine"
        )
        subprocess.run([python, "-W", "error", "-c", program], check=True, cwd=folder)


def main() -> int:
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    sdist, wheel = build(out)
    found = complaints(sdist, wheel)
    print(*found, sep="\n", file=sys.stderr)
    if not found:
        try_install(wheel)
        print(
            f"dist: {sdist.name} and {wheel.name} hold what they should; the wheel installs and "
            "imports"
        )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
