"""What `pip install` puts on the path: from a wheel, from an sdist, editable."""

import importlib.resources
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = next(Path(path) for path in sys.path if path.endswith("site-packages"))


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A wheel and an sdist built from a copy of the tree, so that no build files are left in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("rl_estimators", "patches", "configs"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return out


def test_this_installation():
    """Whichever way it was installed."""
    (ours,) = (e for e in entry_points(group="verl.plugins") if e.name == "rl_estimators")
    assert ours.value == "rl_estimators.verl.plugin"
    assert importlib.util.find_spec(ours.module)
    assert importlib.util.find_spec("rl_estimators.patches")
    assert (importlib.resources.files("rl_estimators.configs") / "__init__.py").is_file()
    assert (importlib.resources.files("rl_estimators") / "py.typed").is_file()


def test_patches_cannot_be_imported_under_a_generic_name():
    spec = importlib.util.spec_from_file_location(
        "patches", importlib.util.find_spec("rl_estimators.patches").origin
    )
    with pytest.raises(
        ImportError, match=r"imported as 'patches': install the package and use rl_estimators.patches"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def modules():
    """Every module, preset and page of ours by its installed path, read off the tree."""
    places = {
        "rl_estimators": "rl_estimators",
        "patches": "rl_estimators/patches",
        "configs": "rl_estimators/configs",
    }
    for top, place in places.items():
        for path in (ROOT / top).rglob("*.*"):
            if path.suffix in (".py", ".yaml", ".html", ".css", ".js"):
                yield f"{place}/{path.relative_to(ROOT / top)}"


@pytest.mark.slow
def test_wheel_holds_every_module_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {*modules(), "rl_estimators/py.typed"}


@pytest.mark.slow
def test_sdist_holds_what_a_build_needs(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
        "patches/__init__.py",
        "configs/__init__.py",
    } <= names


@pytest.mark.slow
@pytest.mark.verl
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_installed_elsewhere_main_ppo_knows_the_estimator(dist, tmp_path, kind):
    """In a new venv that sees this one's packages but not this installation, from another folder."""
    python = fresh_venv(tmp_path / "venv")
    (package,) = dist.glob(kind)
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        str(package),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    code = (
        "import rl_estimators, verl.trainer.main_ppo as main\n"
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn\n"
        "print(rl_estimators.__file__, get_adv_estimator_fn('reinforce_pp').__name__)"
    )
    result = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.stdout.split()[-2:] == [
        str(Path(python).parents[1] / "lib" / SITE.parent.name / "site-packages/rl_estimators/__init__.py"),
        "rle_reinforce_pp",
    ], result.stderr
    doctor = subprocess.run(
        [Path(python).with_name("rl-estimators"), "doctor"], capture_output=True, timeout=300
    )
    assert doctor.returncode == 0


def fresh_venv(folder):
    """A venv on whose path stand all distributions of this one except ours, as links."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / SITE.parent.name / "site-packages"
    for path in SITE.iterdir():
        if "rl_estimators" not in path.name and not path.name.startswith("__pycache__"):
            (site / path.name).symlink_to(path)
    return str(folder / "bin" / "python")
