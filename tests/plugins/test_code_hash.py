import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import PATIENCE
from cells import SHIPPED, small_grid
from plug_ins import GOOD, changed, write

from algorithms.fedhypevae import FedHypeVAE
from baselines.dp_gaussian import DPGaussian
from fedsim.grid.resolve import resolve
from fedsim.plugins.code_hash import HARMLESS, HARNESS, digests, is_shipped, place_of, reached, source_hash
from fedsim.plugins.registry import lookup

HASHED = {
    "fedsim.methods.algorithm",
    "fedsim.batch",
    "fedsim.device",
    "fedsim.plugins.claims",
    "fedsim.data",
    "fedsim.data.embeddings",
    "fedsim.evaluation.scores",
    "fedsim.evaluation.measures",
    "fedsim.models",
    "fedsim.models.initialise",
    "fedsim.models.layers",
    "fedsim.models.linear",
    "fedsim.models.probe",
    "fedsim.partition",
    "fedsim.partition.groups",
    "fedsim.partition.limits",
    "fedsim.partition.partition",
    "fedsim.partition.schemes",
    "fedsim.evaluation",
    "fedsim.evaluation.fidelity",
    "fedsim.evaluation.own_rows",
    "fedsim.evaluation.readouts",
    "fedsim.evaluation.references",
    "fedsim.evaluation.weights",
    "fedsim.methods.clients",
    "fedsim.methods.messages",
    "fedsim.methods.parameters",
    "fedsim.methods.phase",
    "fedsim.methods.products",
    "fedsim.partition.schemes.column",
    "fedsim.partition.schemes.dealing",
    "fedsim.partition.schemes.dirichlet",
    "fedsim.partition.schemes.disjoint",
    "fedsim.partition.schemes.feature_shift",
    "fedsim.partition.schemes.iid",
    "fedsim.partition.schemes.quantity",
    "fedsim.partition.schemes.scheme",
    "fedsim.partition.schemes.shards",
    "fedsim.partition.seen",
    "fedsim.simulation",
    "fedsim.training.rounds",
    "fedsim.training.state",
    "fedsim.partition.spec",
    "fedsim.privacy",
    "fedsim.privacy.accountant",
    "fedsim.privacy.ledger",
    "fedsim.privacy.noise",
    "fedsim.privacy.opacus_accountants",
    "fedsim.privacy.plan",
    "fedsim.privacy.solved",
    "fedsim.runs",
    "fedsim.training.checkpoint",
    "fedsim.training.cohort",
    "fedsim.evaluation.judge",
    "fedsim.planning.prepare",
    "fedsim.training.trial",
    "fedsim.runs.worker",
    "fedsim.keystream",
    "fedsim.seeds",
}
"""What runs a cell. A new module of the harness belongs here, or into HARMLESS with the reason why it changes no number."""


def test_every_module_that_the_harness_reaches_is_hashed_or_harmless_for_a_reason() -> None:
    assert set(reached(HARNESS)) == HASHED | set(HARMLESS)
    assert set(digests(HARNESS)) == HASHED
    assert all(HARMLESS.values())


def test_what_a_run_really_imports_is_reached() -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from cells import small_cells
from fedsim.training.trial import run_trial
cells = small_cells("fedhypevae", "dp-gmm", evaluation={{"per_class": 10, "per_client": True, "personal": "held-out"}})
for trial in cells.trials:
    list(run_trial(trial, next(iter(cells.data.values()))))
print(*(name for name in sys.modules if name.partition(".")[0] in ("fedsim", "algorithms", "baselines")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    known = set(reached([*HARNESS, "algorithms.fedhypevae", "baselines.dp_gmm"])) | {"fedsim.kit", "fedsim.evidence.check.subject"}
    kit = {name for name in done.stdout.split() if name.startswith("fedsim.kit")}  # cells.py takes its short trainings from there
    kit |= {"fedsim.grid.read", "fedsim.grid.yaml"}  # which reads a grid of its own
    assert set(done.stdout.split()) - kit <= known


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
    assert {"algorithms.class_block", "fedsim.privacy.statistics.shrinkage"} <= set(digests((*HARNESS, "algorithms.fedhypevae_warm")))
    found = digests((*HARNESS, "algorithms.fedhypevae"))
    assert {"fedsim.methods.dp_sgd", "fedsim.models.hypernetwork", "fedsim.privacy.clipping.rules"} <= set(found)
    assert not any(name.startswith(("torch", "fedsim.report", "fedsim.kit", "baselines")) for name in found)
    assert len({source_hash(lookup(name)) for name in SHIPPED}) == len({lookup(name).__module__ for name in SHIPPED})


def test_what_a_plug_in_imports_from_the_face_counts_and_no_shipped_algorithm_reaches_it(folder: Path) -> None:
    lookup(write(folder, "faces", GOOD))
    assert {"fedsim.methods.face", "fedsim.models.cvae"} <= set(digests(["faces"]))
    for number, statement in enumerate(("import fedsim.methods as m", "from fedsim import methods", "from fedsim.methods import *")):
        (folder / f"faces_{number}.py").write_text(f"{statement}\n")
        importlib.import_module(f"faces_{number}")
        assert "fedsim.models.cvae" in reached([f"faces_{number}"])
    assert not {"fedsim.methods.face", "fedsim.methods.dp_sgd"} & set(reached((*HARNESS, "baselines.dp_gaussian")))


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
