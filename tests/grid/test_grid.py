"""A grid file: what it means, which cells it makes, and where it has a mistake."""

import math
import pickle
import re
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plug_ins
import pytest
import yaml
from benches import run_process
from pictures import save_folder
from pydantic import Field
from rows import make_published

from baselines.dp_gaussian import DPGaussian
from baselines.fedavg_cvae import FedAvgCVAE
from fedsim.api.new import STARTER
from fedsim.data.embeddings import Embeddings
from fedsim.errors import UserError
from fedsim.grid import cells
from fedsim.grid.cells import expand, loaded, resolve
from fedsim.grid.models import Cell, Evaluation, Grid, Published
from fedsim.grid.read import load_grid, parse
from fedsim.json_lines import decode, encode
from fedsim.methods.algorithm import Params
from fedsim.plugins import registry
from fedsim.plugins.registry import register

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Write = Callable[..., Path]


class Schedule(Params):
    warmup: int = 3


@register("config-private")
class Private(DPGaussian):
    class Params(Params):
        beta: float = Field(default=1.0, ge=0)
        rate: float = 1e-3
        schedule: Schedule = Schedule()


@register("config-open")
class Open(FedAvgCVAE):
    class Params(Params):
        beta: float = 1.0


def toy(seed: int = 0, rows: int = 60) -> Embeddings:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 4)).astype(np.float32)
    y = np.arange(rows) % 3
    return Embeddings("toy", x, y, x[:9], y[:9], 3)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, name: str = "g.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def cells_of(grid: Grid, **data: Embeddings) -> tuple[Cell, ...]:
    return expand(resolve(grid), {spec.key: data.get(spec.display, toy()) for spec in grid.dataset})


def grid_of(**keys: Any) -> Grid:
    return Grid.model_validate({"algorithms": ["config-private", "config-open"], **keys})


def ids(**keys: Any) -> list[str]:
    return [cell.cell_id for cell in cells_of(grid_of(**keys))]


EVERYTHING = """
dataset: [{npz: data/a.npz}, {npz: /else/b.npz}]
algorithms:
  - {name: config-private, params: &p {beta: 2}, scan: {rate: [1e-2, 2]}}
  - {name: config-open, params: {<<: *p, beta: 3}}
alpha: [1e-1, 15]
clients: 3
epsilon: .inf
seeds: [0-2, 7]
delta: 1e-5
unit: {column: patient}
evaluation: {probe_c: 0.5, personal: 0.3, evaluators: knn}
resources: {cell_timeout: 1.5h, clients_per_actor: all, gpus_per_actor: 0.25}
"""


@pytest.mark.parametrize(
    ("rows", "dim", "expected"),
    [
        (10_000, 1280, 0.01),
        (1920, 1280, 0.01),
        (960, 1280, 0.0025),
        (192, 1280, 0.0001),
        (10_000, 96, 0.04),
    ],
)
def test_penalty_of_the_probe_follows_rows_and_features(
    rows: int, dim: int, expected: float
) -> None:
    assert Evaluation().synthetic_c(rows, dim, classes=5) == pytest.approx(expected)
    assert Evaluation(probe_c=0.5).synthetic_c(rows, dim, classes=5) == 0.5


def test_grid_with_everything_is_read_and_written_as_it_was(write: Write, tmp_path: Path) -> None:
    path = write(EVERYTHING, "my_grid.yaml")
    grid = load_grid(path, ["evaluation.per_class=50", "clients=[2, 3]"])
    assert grid.name == "my_grid"
    assert grid.clients == (2, 3)
    assert grid.evaluation.per_class == 50
    assert grid.evaluation.probe_c == 0.5
    assert grid.alpha == (0.1, 15)
    assert grid.epsilon == (math.inf,)
    assert grid.seeds == (0, 1, 2, 7)
    assert grid.delta == 1e-5
    assert [spec.npz for spec in grid.dataset] == [tmp_path / "data/a.npz", Path("/else/b.npz")]
    assert [entry.params["beta"] for entry in grid.algorithms] == [2, 3]
    assert grid.unit_column == "patient"
    assert grid.unit_kind == "group"
    assert grid.division.together == "patient"
    assert grid.resources.cell_timeout == 5400.0
    assert grid.location("clients", 1) == "set clients[1]"
    assert grid.location("alpha", 1) == f"{path}:6: alpha[1]"
    assert Grid.model_validate_json(grid.model_dump_json()) == grid
    text = yaml.safe_dump(grid.model_dump(mode="json"))
    assert load_grid(write(text, "my_grid.yaml")) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid  # noqa: S301


@pytest.mark.parametrize("name", sorted(path.name for path in BENCHMARKS.glob("*.yaml")))
def test_every_shipped_grid_is_valid(name: str) -> None:
    assert resolve(load_grid(BENCHMARKS / name)).variants


BASE = "algorithms: [config-private]\n"
NUMBER = "{published: 0.9, measure: accuracy, label: DP-CVAE"
"""The beginning of a published number, without its source and its ε."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BASE + "epsilon:\n  - 1\n  - -1",
            "g.yaml:4: epsilon[1]: must be greater than 0, got -1",
        ),
        (
            BASE + "epsilon: [1, 0]",
            "g.yaml:2: epsilon[1]: 0 would be infinite noise; give a number above 0, or "
            ".inf, which is no noise",
        ),
        (
            BASE + "epsilonn: 1",
            "g.yaml:2: epsilonn: unknown key 'epsilonn'; did you mean 'epsilon'?",
        ),
        (
            BASE + "evaluation:\n  per_clas: 3",
            "g.yaml:3: evaluation.per_clas: unknown key 'per_clas'; did you mean 'per_class'?",
        ),
        (
            BASE + "evaluation:\n  readouts: [knn]",
            "g.yaml:3: evaluation.readouts: unknown key 'readouts'; it is now called 'evaluators'",
        ),
        ("alpha: 1", "g.yaml: algorithms: is missing"),
        (
            BASE + "seeds: 4-0",
            "seeds: '4-0' is not a range of up to 1000 numbers; give one such as 0-4",
        ),
        (
            BASE + "unit: {colum: a}",
            "g.yaml:2: unit.colum: unknown key 'colum'; did you mean 'column'?",
        ),
        (
            BASE + "dataset: [{npz: a.npz, licens: mine}]",
            "g.yaml:2: dataset[0].licens: unknown key 'licens'; did you mean 'licence'?",
        ),
        (
            BASE + "unit: {column: client}",
            "a column called 'client' would be taken for another unit; rename it",
        ),
        (
            BASE + "unit: {column: a}\npartition: {together: b}",
            "a group is all rows of one 'a', partition.together keeps",
        ),
        (
            BASE + "evaluation: {unseen: x, personal: 0}",
            "g.yaml:2: evaluation: an unseen site's rows are no client's",
        ),
        (
            BASE + "resources: {device: cuda}",
            "device: cuda needs a GPU, and gpus_per_actor is 0; give gpus_per_actor: 1 or a part",
        ),
        (
            BASE + "tune: {params: {beta: [1, 2]}}\nunit: client",
            "g.yaml:3: unit: tune does not work with unit: client",
        ),
        (
            BASE + "tune: {params: {beta: [1, 2]}, curves: free}\ntrust: silo",
            "g.yaml:3: trust: under trust: silo every training",
        ),
        (
            f"algorithms:\n- config-private\n- {NUMBER}, epsilon: 1}}",
            "g.yaml:3: algorithms[1].source: is missing",
        ),
        (
            f"algorithms:\n- config-private\n- {NUMBER}, source: ''}}",
            "g.yaml:3: algorithms[1].epsilon: is missing",
        ),
        (
            f"algorithms:\n- config-private\n- {NUMBER}, source: A, epsilon: -1}}",
            "g.yaml:3: algorithms[1].epsilon: must be greater than 0, got -1",
        ),
        (
            f"algorithms:\n- config-private\n- {NUMBER}, source: A, epsilon: 0}}",
            "g.yaml:3: algorithms[1].epsilon: 0 would be infinite noise",
        ),
        (
            f"algorithms:\n- config-private\n- {NUMBER}, source: A, epsilon: 1, params: {{}}}}",
            "params: unknown key 'params'; this entry is a published number, which has no such key",
        ),
        (
            f"algorithms:\n- {NUMBER}, source: A, epsilon: 1}}",
            "g.yaml:1: algorithms: nothing runs, because all entries are published numbers; add",
        ),
        (
            f"algorithms:\n- {NUMBER}, source: A, epsilon: 1}}\n- config-privat",
            "g.yaml:3: algorithms[1]: unknown algorithm 'config-privat'",
        ),
        (
            "algorithms: [config-privat]",
            "g.yaml:1: algorithms[0]: unknown algorithm 'config-privat'; did you mean "
            "'config-private'?",
        ),
        (
            "algorithms: {name: config-private, params: {schedule: {warmpu: 1}}}",
            "params.schedule.warmpu: unknown key 'warmpu'; did you mean 'warmup'?",
        ),
        (
            "algorithms: {name: config-private, scan: {betta: [1]}}",
            "scan.betta: config-private has no parameter 'betta'; did you mean",
        ),
        (
            "algorithms: {name: config-private, params: {beta: 1}}\nscan: {beta: 2}",
            "g.yaml:2: scan.beta: g.yaml:1: algorithms.params",
        ),
        (
            BASE + "scan: {betta: [1]}",
            "g.yaml:2: scan.betta: no algorithm of the grid has the parameter 'betta'; did "
            "you mean 'beta'?",
        ),
        (
            BASE + "scan: {beta: [1, x]}",
            "g.yaml:2: scan.beta[1]: must be a valid number",
        ),
        (
            BASE + "evaluation: {per_class: 1, per_class: 2}",
            "g.yaml:2: is not valid YAML (the key 'per_class' is given twice); remove one",
        ),
        ("- a", "g.yaml: is not a mapping"),
        ("a: !!python/object/apply:os.getcwd []", "g.yaml:1: is not valid YAML"),
    ],
)
def test_a_mistake_is_one_message_with_its_place(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(write(text).parent)
    with pytest.raises(UserError) as caught:
        resolve(load_grid("g.yaml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def grid_with_number(position: int, **keys: Any) -> Grid:
    """Return a grid of two algorithms with a published number among them."""
    entries: list[Any] = ["config-private", "config-open"]
    entries.insert(position, make_published(epsilon=math.inf).model_dump())
    return grid_of(algorithms=entries, **keys)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_published_number_makes_no_cell(position: int) -> None:
    grid = grid_with_number(position)
    assert grid.most_cells == 2
    assert cells_of(grid) == cells_of(grid_of())


def test_grid_with_a_published_number_is_written_and_read(write: Write) -> None:
    grid = grid_with_number(1)
    assert list(grid.running) == [0, 2]
    assert Grid.model_validate(decode(encode(grid.model_dump()))) == grid
    text = yaml.safe_dump(grid.model_dump(mode="json"))
    assert load_grid(write(text, "grid.yaml")) == grid


def test_python_adds_a_published_number_as_an_algorithm() -> None:
    number = {"published": 0.9, "measure": "auroc", "epsilon": 1, "source": "A", "label": "L"}
    grid = load_grid({"algorithms": "config-private"}, algorithms=[number])
    assert grid.algorithms[1] == Published.model_validate(number)


@pytest.mark.parametrize(
    ("dataset", "belongs"),
    [("PACS", True), ("PACS (dinov2-small)", True), ("PACS2", False), ("digits", False)],
)
def test_published_number_belongs_to_its_data_set(dataset: str, *, belongs: bool) -> None:
    assert make_published(dataset="PACS").belongs_to(dataset) is belongs


def bomb(repeat: str) -> str:
    """Nine levels of anchors, each of which names the one before nine times."""
    levels = [BASE, "a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n} {repeat % ', '.join([f'*a{n - 1}'] * 9)}" for n in range(1, 10)]
    return "\n".join(levels)


@pytest.mark.parametrize("repeat", ["[%s]", "{<<: [%s]}", "{x: [%s]}"])
def test_grid_whose_aliases_multiply_is_refused_at_once(write: Write, repeat: str) -> None:
    path = write(bomb(repeat))
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_grid(path)
    assert time.process_time() - started < 1
    message = str(caught.value)
    assert re.search(
        r"g\.yaml:\d+: the YAML aliases .* for more than 100,000 values; write", message
    )
    assert len(message) < 300


def test_grid_with_an_alias_of_itself_is_refused(write: Write) -> None:
    with pytest.raises(UserError, match=r"g\.yaml:2: its anchor contains itself; "):
        load_grid(write(f"{BASE}alpha: &a [1, *a]"))


def test_anchors_and_merge_keys_of_a_grid_work(write: Write) -> None:
    text = """
    algorithms:
    - {name: config-private, label: one, params: &shared {beta: 0.5}}
    - {name: config-private, label: two, params: {<<: *shared, rate: 0.1}}
    alpha: &values [0.1, 1]
    epsilon: *values
    """
    grid = load_grid(write(textwrap.dedent(text)))
    assert grid.epsilon == grid.alpha == (0.1, 1)
    assert grid.algorithms[1].params == {"beta": 0.5, "rate": 0.1}


def test_long_grid_with_few_aliases_is_read() -> None:
    text = f"alpha: &a [1]\nepsilon: *a\nseeds: [{', '.join(['1'] * 100_001)}]"
    assert len(parse(text, "g.yaml")[0]["seeds"]) == 100_001


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("grille é", "grille-e"),
        ("_Essai (2)", "Essai-2"),
        ("as.it_is-", "as.it_is-"),
        ("网格", "grid"),
    ],
)
def test_name_of_a_grid_follows_from_its_file(write: Write, file: str, name: str) -> None:
    assert load_grid(write(BASE, f"{file}.yaml")).name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "dataset: {imagefolder: none}\nencoder: efficientnet-lite0",
            r"g.yaml:2: dataset\[0\]: .*there is no such folder",
        ),
        (
            "dataset: {imagefolder: pets}\nencoder:\n- efficientnet-lite0",
            r"g.yaml:4: encoder\[0\]: .*`fedsim embed --make",
        ),
        (
            "dataset:\n- imagefolder: pets\n  encoder: efficientnet-lite0",
            r"g.yaml:4: dataset\[0\].encoder: .*`fedsim embed --make",
        ),
        (
            "dataset: digits\npublic: {imagefolder: pets}\nencoder: efficientnet-lite0",
            "g.yaml:4: encoder: .*`fedsim embed --make",
        ),
    ],
)
def test_missing_data_or_encoder_is_named_by_its_place(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    save_folder(tmp_path / "pets")
    with pytest.raises(UserError, match=message):
        loaded(load_grid(write(BASE + text)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alpha=[0.3, -1]", "set alpha[1]: must be greater than 0, got -1"),
        ("name.x=5", "set name.x: 'name' is not a mapping in the grid file; set name as a whole"),
        ("alpha", "set alpha: is not of the form key=value"),
    ],
)
def test_mistake_in_an_override_names_it(write: Write, override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_grid(write(BASE + "name: x"), [override])
    assert str(caught.value).startswith(message)


def test_file_that_is_no_text_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00binary")
    for file in (tmp_path / "none.yaml", binary):
        with pytest.raises(UserError, match="cannot be read"):
            load_grid(file)


def test_cells_of_a_partition_come_together() -> None:
    cells = cells_of(grid_of(seeds=[1, 0], clients=[2, 3]))
    assert [(cell.clients, cell.seed) for cell in cells[::2]] == [(2, 1), (2, 0), (3, 1), (3, 0)]


def test_epsilon_multiplies_private_algorithms_only() -> None:
    cells = cells_of(grid_of(epsilon=[4, math.inf]))
    assert [(cell.algorithm, cell.epsilon) for cell in cells] == [
        ("config-private", 4),
        ("config-private", math.inf),
        ("config-open", None),
    ]
    for cell in cells:
        assert Cell.model_validate_json(cell.model_dump_json()) == cell


def test_only_private_cells_have_secret_noise() -> None:
    cells = cells_of(grid_of(privacy={"noise": "secret"}))
    assert [cell.noise for cell in cells] == ["secret", "seeded"]


def test_scan_multiplies_the_algorithms_that_have_the_parameter() -> None:
    cells = cells_of(grid_of(scan={"rate": [0.1, 0.2], "beta": 3}))
    assert [cell.label for cell in cells] == [
        "config-private rate=0.1 beta=3",
        "config-private rate=0.2 beta=3",
        "config-open beta=3",
    ]
    assert cells[0].params == {"beta": 3.0, "rate": 0.1, "schedule": {"warmup": 3}}


def registered(folder: Path, stem: str, name: str | None) -> str:
    """A plug-in of that file, maybe registered; returns how a grid names it."""
    text = STARTER.read_text().replace('"my-method"', f'"{name}"')
    return plug_ins.write(folder, stem, plug_ins.GOOD if name is None else text)


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plug-in registers is gone after the test."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def labels_of(folder: Path, *entries: Any) -> list[str]:
    """The labels of a grid file of that folder, as its manifest would give them again."""
    (folder / "g.yaml").write_text(yaml.safe_dump({"algorithms": list(entries)}))
    grid = resolve(load_grid("g.yaml")).grid
    again = resolve(Grid.model_validate(grid.model_dump(mode="json")))
    labels = [entry.label or entry.name for entry in grid.algorithms]
    assert [variant.label for variant in again.variants] == labels
    return labels


def test_a_path_is_labelled_by_its_registered_name(folder: Path, no_names: None) -> None:
    path = registered(folder, "one_of_a_name", "one-of-a-name")
    assert labels_of(folder, path, "dp-gaussian") == ["one-of-a-name", "dp-gaussian"]


def test_a_class_that_is_not_registered_is_labelled_by_its_path(folder: Path) -> None:
    path = registered(folder, "one_without_name", None)
    assert labels_of(folder, path) == [path]


def test_a_given_label_is_kept(folder: Path, no_names: None) -> None:
    path = registered(folder, "one_with_label", "one-with-label")
    assert labels_of(folder, {"name": path, "label": "mine"}) == ["mine"]


def test_a_registered_name_that_is_taken_leaves_the_path(folder: Path, no_names: None) -> None:
    path = registered(folder, "one_of_two", "one-of-two")
    other = {"name": "dp-gaussian", "label": "one-of-two"}
    assert labels_of(folder, path, other) == [path, "one-of-two"]


def test_a_module_s_class_is_labelled_by_its_registered_name(folder: Path) -> None:
    assert labels_of(folder, "baselines.dp_gaussian:DPGaussian") == ["dp-gaussian"]


def test_tuned_entry_has_one_variant_per_curve() -> None:
    entry = {"name": "config-private", "tune": {"beta": [1, 2]}}
    grid = grid_of(algorithms=[entry], tune={"curves": ["default", "tuned"]})
    default, tuned = resolve(grid).variants
    assert default.label == "config-private"
    assert default.tuning is None
    assert tuned.label == "config-private tuned"
    assert tuned.tuning is not None
    assert tuned.tuning.space == {"beta": (1.0, 2.0)}


def test_ids_ignore_the_order_of_a_grid() -> None:
    base = ids(seeds=[0, 1], epsilon=[1, 4])
    turned = ids(seeds=[1, 0], epsilon=[4, 1], algorithms=["config-open", "config-private"])
    assert len(set(base)) == len(base)
    assert set(turned) == set(base)


def test_ids_ignore_name_and_resources() -> None:
    resources = {"clients_per_actor": 3, "cpus_per_actor": 2}
    assert ids(resources=resources, name="x") == ids()


def test_ids_ignore_an_alpha_without_effect() -> None:
    iid = {"scheme": "iid"}
    assert ids(partition=iid, alpha=1) == ids(partition=iid, alpha=2)


def test_ids_ignore_the_path_of_the_data() -> None:
    assert ids(dataset={"npz": "/a/x.npz"}) == ids(dataset={"npz": "/b/y.npz"})


@pytest.mark.parametrize(
    "change", [{"epsilon": 7}, {"delta": 1e-9}, {"unit": "client"}, {"trust": "silo"}]
)
def test_ids_of_methods_without_privacy_ignore_the_budget(change: dict[str, Any]) -> None:
    assert ids(algorithms="config-open", **change) == ids(algorithms="config-open")


@pytest.mark.parametrize(
    "change",
    [
        {"algorithms": {"name": "config-private", "params": {"beta": 2}}},
        {"partition": {"scheme": "feature-shift", "strength": 1.0}},
        {"partition": {"min_size": 3}},
        {"alpha": 0.31},
        {"clients": 9},
        {"epsilon": math.inf},
        {"delta": 1e-5},
        {"unit": "client"},
        {"trust": "silo"},
        {"seeds": 1},
        {"evaluation": {"per_class": 201}},
    ],
)
def test_ids_follow_whatever_can_change_a_result(change: dict[str, Any]) -> None:
    assert ids(**{"algorithms": "config-private", **change}) != ids(algorithms="config-private")


def test_ids_follow_the_content_of_the_data_and_the_class() -> None:
    @register("config-derived")
    class Derived(Private):
        pass

    assert ids(algorithms="config-derived") != ids(algorithms="config-private")
    assert cells_of(grid_of(), digits=toy(seed=1))[0].cell_id != cells_of(grid_of())[0].cell_id


@pytest.mark.parametrize(
    "twice",
    [
        {"alpha": [1, 1.0]},
        {"partition": {"scheme": "iid"}, "alpha": [1, 2]},
        {"dataset": [{"npz": "/a.npz"}, {"npz": "/b.npz"}]},
        {
            "algorithms": [
                "config-open",
                {"name": "config-open", "params": {"beta": 1}, "label": "other"},
            ]
        },
        {"algorithms": ["config-open", {"name": "config-open", "params": {"beta": 2}}]},
    ],
)
def test_no_two_cells_are_equal_or_have_the_same_name(twice: dict[str, Any]) -> None:
    with pytest.raises(
        UserError,
        match=r"two (different cells would have|cells are equal).* · seed 0; (give|remove)",
    ):
        cells_of(grid_of(**twice))


def test_partition_that_the_data_do_not_allow_is_named_by_place(write: Write) -> None:
    grid = load_grid(write(BASE + "dataset: [digits, {npz: a.npz}]\nclients:\n  - 5\n  - 40"))
    message = r"g.yaml:5: clients\[1\]: 40 clients × 2 \(partition.min_size\) = 80 rows"
    with pytest.raises(UserError, match=message):
        cells_of(grid, digits=toy(rows=90), a=toy(rows=60))


def test_column_that_the_data_lack_is_named_by_place(write: Write) -> None:
    grid = load_grid(write(BASE + "partition:\n  scheme: column\n  column: site"))
    message = r"g.yaml:4: partition.column: the data set has no column 'site'"
    with pytest.raises(UserError, match=message):
        cells_of(grid)


def test_reading_a_grid_imports_neither_torch_nor_a_plug_in(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "g.yaml").write_text("algorithms: [mine.py:Mine]\nencoder: facebook/dinov2-small\n")
    script = f"""
import sys
from pathlib import Path
import fedsim.grid.read
for path in ("g.yaml", {str(BENCHMARKS / "quickstart.yaml")!r}):
    fedsim.grid.read.load_grid(Path(path))
print(*sorted(sys.modules))
"""
    done = run_process([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "fedsim.grid.models" in imported
    assert not {"torch", "ray", "sklearn", "mine"} & imported
    assert not {
        name for name in imported if name.startswith(("algorithms", "baselines", "fedsim.methods"))
    }


def test_more_synthetic_examples_than_memory_are_refused(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "MOST_SYNTHETIC_NUMBERS", 10 * 3 * (4 + 3))
    resolved = resolve(load_grid(write(BASE + "evaluation: {per_class: 11}")))
    data = {spec.key: toy() for spec in resolved.grid.sets}
    with pytest.raises(UserError, match=r"per_class: takes too much memory .* give at most 10"):
        expand(resolved, data)
