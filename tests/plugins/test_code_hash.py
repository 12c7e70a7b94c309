import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from benches import PATIENCE
from cells import SHIPPED, small_cells, small_grid
from plug_ins import GOOD, changed, write

from algorithms.fedhypevae import FedHypeVAE
from baselines.dp_gaussian import DPGaussian
from fedsim.grid.cells import resolve
from fedsim.plugins import code_hash
from fedsim.plugins.code_hash import (
    EVALUATION,
    HARMLESS,
    LAZY,
    TRAINING,
    digests,
    evaluation_hash,
    is_harmless,
    is_shipped,
    modules_of,
    place_of,
    reached,
    source_hash,
)
from fedsim.plugins.places import FEDSIM
from fedsim.plugins.registry import lookup

DRIVER = ("cli", "runs", "report", "evidence", "results", "planning")
"""Rooms that only messages, files and processes are of: none of a row's numbers."""

ROOMS = {name: modules_of(name) for name in (TRAINING, EVALUATION)}
ALGORITHM = "algorithms.fedhypevae"


def test_every_module_of_training_and_evaluation_is_hashed() -> None:
    for room, modules in ROOMS.items():
        assert len(modules) > 3
        assert set(modules) <= set(digests(modules)), room
    assert set(ROOMS[TRAINING]) <= set(digests((*ROOMS[TRAINING], ALGORITHM)))


def test_what_they_reach_is_hashed_or_harmless_for_a_reason() -> None:
    both = reached([*ROOMS[TRAINING], *ROOMS[EVALUATION]])
    left_out = both.keys() - digests([*ROOMS[TRAINING], *ROOMS[EVALUATION]]).keys()
    assert all(any(name in ("fedsim", LAZY) or f"{name}.".startswith(f"{room}.") for room in HARMLESS) for name in left_out)
    assert all(HARMLESS.values())
    # none outlives its room
    checks = reached(["fedsim.evidence.check.check"])
    assert all(room in both or room in checks for room in HARMLESS)


def test_the_hash_of_a_training_reaches_no_room_above() -> None:
    found = reached([*ROOMS[TRAINING], ALGORITHM])
    assert not [name for name in found if name.startswith(tuple(f"fedsim.{room}" for room in (*DRIVER, "evaluation")))]
    assert not [name for name in reached(ROOMS[EVALUATION]) if name.startswith(tuple(f"fedsim.{room}" for room in DRIVER))]


@pytest.fixture
def ids_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """The hash of an algorithm's training and that of judging, with every file of fedsim that the names begin read as if edited."""

    def read(*names: str) -> tuple[str, str]:
        edits = []

        def edited(path: Path, content: Callable[[Path], bytes] = Path.read_bytes) -> bytes:
            if not path.is_relative_to(FEDSIM) or not path.relative_to(FEDSIM).as_posix().startswith(names):
                return content(path)
            edits.append(path)
            return content(path) + b"\nEDITED = 1.0\n"

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", edited)
            patch.setattr(code_hash, "_known", WeakKeyDictionary())
            patch.setattr(code_hash, "module_hash", code_hash.module_hash.__wrapped__)
            return source_hash(FedHypeVAE), evaluation_hash()

    return read


@pytest.mark.parametrize(
    ("edited", "training", "judging"),
    [
        *((f"{room}/", False, False) for room in DRIVER),
        ("grid/", False, False),
        ("plugins/", False, False),
        ("errors.py", False, False),
        ("data/sources/", False, False),
        ("training/rounds.py", True, True),
        ("seeds.py", True, True),
        ("privacy/noise.py", True, True),
        ("methods/dp_sgd.py", True, False),
        ("evaluation/judge.py", False, True),
        ("models/probe.py", True, True),
    ],
)
def test_an_edit_changes_the_ids_of_what_it_can_change_and_an_edited_driver_none(
    ids_after: Callable[..., tuple[str, str]], edited: str, training: bool, judging: bool
) -> None:
    assert list(FEDSIM.glob(f"{edited}*"))
    before, after = ids_after("nothing"), ids_after(edited)
    assert before == (source_hash(FedHypeVAE), evaluation_hash())
    assert (before[0] != after[0], before[1] != after[1]) == (training, judging)


def test_what_a_worker_imports_to_run_a_cell_is_hashed_or_harmless() -> None:
    cells = small_cells("fedhypevae", "dp-gmm", evaluation={"per_class": 10, "per_client": True, "personal": "held-out"})
    script = """
import pickle, sys
from fedsim.evaluation.judge import judgement_of
from fedsim.training.trial import run_trial
for trial, data in pickle.load(sys.stdin.buffer):
    *_, outcome = run_trial(trial, data)
    judgement_of(trial, outcome.state, data)
print(*(name for name in sys.modules if name.partition(".")[0] in ("fedsim", "algorithms", "baselines")))
"""
    given = pickle.dumps([(trial, cells.data[trial.data_key]) for trial in cells.trials])
    done = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    imported = {name for name in done.stdout.decode().split() if not is_harmless(name)}
    roots = (*ROOMS[TRAINING], *ROOMS[EVALUATION], "algorithms.fedhypevae", "baselines.dp_gmm")
    assert imported
    assert imported <= set(digests(roots)) | {"algorithms", "baselines"}


def hashed(folder: Path, text: str, stem: str = "method") -> str:
    """The hash of a plug-in in a fresh import."""
    sys.modules.pop(stem, None)
    return source_hash(lookup(write(folder, stem, text)))


def test_only_what_runs_counts(folder: Path) -> None:
    first = hashed(folder, GOOD)
    assert (
        hashed(folder, "# a comment\n\n\n" + GOOD.replace('"""Negative ELBO', '"""Minus ELBO').replace("# What rows", "\n    # What"))
        == first
    )
    assert hashed(folder, changed('"kl": self.params.beta * unit * kl', '"kl": 2 * self.params.beta * unit * kl')) != first
    assert hashed(folder, changed("beta: float = Field(0.5, ge=0)", "beta: float = Field(0.4, ge=0)")) != first
    assert hashed(folder, GOOD) == first


@pytest.mark.parametrize(
    "statement",
    ["import beside", "from beside import SCALE", "import part.inner", "from part import inner", "from part.inner import SCALE"],
)
@pytest.mark.parametrize("place", ["at the top", "in a function"])
def test_modules_beside_it_that_it_imports_count_one_from_another(folder: Path, statement: str, place: str) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "__init__.py").touch()
    (folder / "part" / "inner.py").write_text("from .deep import SCALE\n")
    (folder / "part" / "deep.py").write_text("SCALE = 1.0\n")
    (folder / "beside.py").write_text("from part.deep import SCALE\n")
    (folder / "unrelated.py").write_text("SCALE = 1.0\n")
    text = GOOD + (f"\n{statement}\n" if place == "at the top" else f"\ndef late():\n    {statement}\n")
    first = hashed(folder, text)
    (folder / "unrelated.py").write_text("SCALE = 2.0\n")
    assert hashed(folder, text) == first
    (folder / "part" / "deep.py").write_text("SCALE = 2.0\n")
    assert hashed(folder, text) != first


def test_a_base_class_of_its_own_in_another_module_counts(folder: Path) -> None:
    base = GOOD.replace("class MyMethod(", "class Base(")
    (folder / "base_of_method.py").write_text(base)
    text = "from base_of_method import Base\n\n\nclass MyMethod(Base):\n    pass\n"
    first = hashed(folder, text)
    (folder / "base_of_method.py").write_text(base.replace("self.params.beta * unit", "3 * self.params.beta * unit"))
    sys.modules.pop("base_of_method")
    assert hashed(folder, text) != first


def test_nothing_is_imported_to_be_hashed(folder: Path) -> None:
    (folder / "never_imported.py").write_text("raise AssertionError\n")
    hashed(folder, GOOD + "\n\ndef late():\n    import never_imported\n")
    assert "never_imported" not in sys.modules


def test_a_neighbour_that_is_no_python_counts_by_its_bytes(folder: Path) -> None:
    (folder / "half_written.py").write_text("def build(:\n")
    text = GOOD + "\n\ndef late():\n    import half_written\n"
    first = hashed(folder, text)
    (folder / "half_written.py").write_text("def built(:\n")
    assert hashed(folder, text) != first


def test_the_mathematics_of_a_shipped_algorithm_is_its_own_and_the_harness_s() -> None:
    trains = ROOMS[TRAINING]
    assert {"algorithms.class_block", "fedsim.privacy.statistics.shrinkage"} <= set(digests((*trains, "algorithms.fedhypevae_warm")))
    found = digests((*trains, ALGORITHM))
    assert {"fedsim.methods.dp_sgd", "fedsim.models.hypernetwork", "fedsim.privacy.clipping.rules"} <= set(found)
    assert not any(name.startswith(("torch", "fedsim.report", "fedsim.evidence", "baselines")) for name in found)
    assert len({source_hash(lookup(name)) for name in SHIPPED}) == len({lookup(name).__module__ for name in SHIPPED})


def test_what_a_plug_in_imports_from_the_face_counts_and_no_shipped_algorithm_reaches_it(folder: Path) -> None:
    lookup(write(folder, "faces", GOOD))
    assert {"fedsim.methods.face", "fedsim.models.cvae"} <= set(digests(["faces"]))
    for number, statement in enumerate(("import fedsim.methods as m", "from fedsim import methods", "from fedsim.methods import *")):
        (folder / f"faces_{number}.py").write_text(f"{statement}\n")
        importlib.import_module(f"faces_{number}")
        assert "fedsim.models.cvae" in reached([f"faces_{number}"])
    assert not {"fedsim.methods.face", "fedsim.methods.dp_sgd"} & set(reached((*ROOMS[TRAINING], "baselines.dp_gaussian")))


def ids(name: str) -> tuple[str, str]:
    (variant,) = resolve(small_grid({"name": name})).variants
    return variant.identity, variant.source


def test_two_files_with_one_stem_in_different_folders_share_no_identity(folder: Path) -> None:
    found = []
    for below in ("a", "b"):
        (folder / below).mkdir()
        write(folder / below, "twin", GOOD)
        sys.modules.pop("twin", None)
        sys.path[:] = [entry for entry in sys.path if Path(entry).name not in ("a", "b")]
        found.append(ids(f"{below}/twin.py:MyMethod"))
    assert found[0][1] == found[1][1]
    assert [identity for identity, _ in found] == ["a/twin.py:MyMethod", "b/twin.py:MyMethod"]


def test_one_file_has_one_identity_however_a_grid_names_it(folder: Path) -> None:
    write(folder, "one_file", GOOD)
    assert ids("one_file.py:MyMethod") == ids(f"{folder}/one_file.py:MyMethod") == ids("one_file:MyMethod")
    assert ids("one_file.py:MyMethod")[0] == "one_file.py:MyMethod"


def test_a_shipped_class_is_named_by_its_module_wherever_fedsim_lies() -> None:
    assert place_of(FedHypeVAE) == "algorithms.fedhypevae:FedHypeVAE"
    assert is_shipped(DPGaussian)


def test_a_folder_that_is_called_like_a_shipped_one_is_not_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "baselines").mkdir()
    write(folder / "baselines", "impostor", GOOD)
    found = lookup("baselines/impostor.py:MyMethod")
    assert not is_shipped(found)
    assert place_of(found) == "baselines/impostor.py:MyMethod"


@pytest.fixture
def typed() -> Callable[[], type[DPGaussian]]:
    """Defines a class as an interpreter would: no file has it."""

    def define() -> type[DPGaussian]:
        names: dict[str, type[DPGaussian]] = {"__name__": "console", "DPGaussian": DPGaussian}  # type: ignore[dict-item]
        exec("class Typed(DPGaussian):\n    pass\n", names)
        return names["Typed"]

    return define


def test_a_class_without_a_file_is_itself_and_no_other(typed: Callable[[], type[DPGaussian]]) -> None:
    first, second = typed(), typed()
    assert source_hash(first) == source_hash(first)
    assert source_hash(first) != source_hash(second)
    assert place_of(first) == "interpreter:Typed"
