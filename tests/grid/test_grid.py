import math
import pickle
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from baselines.dp_gaussian import DPGaussian
from baselines.fedavg_cvae import FedAvgCVAE
from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.load import load
from fedsim.data.spec import DatasetSpec
from fedsim.errors import UserError
from fedsim.grid.cells import expand
from fedsim.grid.models import Cell, Grid
from fedsim.grid.read import load_grid
from fedsim.grid.resolve import resolve
from fedsim.methods.algorithm import Params
from fedsim.plugins.registry import register


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


def toy(seed=0, rows=60):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((rows, 4)).astype(np.float32), np.arange(rows) % 3
    return Embeddings("toy", x, y, x[:9], y[:9], 3)


@pytest.fixture
def write(tmp_path):
    def write(text, name="g.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


def cells_of(grid, **data):
    return expand(resolve(grid), {spec.key: data.get(spec.display, toy()) for spec in grid.dataset})


def grid_of(**keys):
    return Grid.model_validate({"algorithms": ["config-private", "config-open"], **keys})


def ids(**keys):
    return [cell.cell_id for cell in cells_of(grid_of(**keys))]


# ---- reading


def test_only_algorithms_is_required(write):
    grid = load_grid(write("algorithms: config-private", "my_grid.yaml"))
    assert grid.name == "my_grid"
    assert [spec.name for spec in grid.dataset] == ["digits"]
    assert (grid.alpha, grid.clients, grid.epsilon, grid.seeds) == ((0.3,), (10,), (1.0,), (0,))
    assert (grid.delta, grid.unit, grid.trust, grid.partition.scheme) == (1e-4, "example", "aggregate", "dirichlet")


def test_numbers_that_yaml_1_1_takes_for_text_are_numbers(write):
    grid = load_grid(write("{algorithms: [config-private], delta: 1e-5, alpha: [1e-1, 1E2, 1.5e1], epsilon: .inf, seeds: [1e1, 0o13]}"))
    assert (grid.delta, grid.alpha, grid.epsilon, grid.seeds) == (1e-5, (0.1, 100.0, 15.0), (math.inf,), (10, 11))


def test_relative_paths_start_at_the_grid_file(write, tmp_path, monkeypatch):
    path = write("{algorithms: config-private, dataset: [{npz: data/a.npz}, {npz: /else/b.npz}]}")
    monkeypatch.chdir(tmp_path)
    for spelling in (path, Path("g.yaml")):
        assert [spec.npz for spec in load_grid(spelling).dataset] == [tmp_path / "data/a.npz", Path("/else/b.npz")]


def test_overrides_replace_and_reach_into_mappings(write):
    path = write("{algorithms: config-private, alpha: [1, 2], evaluation: {probe_c: 0.5}}")
    grid = load_grid(path, ["alpha=[0.3]", "evaluation.per_class=50", "scan.beta=[1e-2, 2]", "name=other"])
    assert (grid.alpha, grid.evaluation.per_class, grid.evaluation.probe_c, grid.name) == ((0.3,), 50, 0.5, "other")
    assert grid.scan == {"beta": (0.01, 2)}


def test_merge_keys_and_aliases_are_read(write):
    grid = load_grid(write("algorithms: [{name: config-private, params: &p {beta: 2}}, {name: config-open, params: {<<: *p, beta: 3}}]"))
    assert [entry.params["beta"] for entry in grid.algorithms] == [2, 3]


def test_the_quickstart_is_the_issue_s():
    given = yaml.safe_load((Path(__file__).parents[2] / "benchmarks/quickstart.yaml").read_text())
    assert given["algorithms"] == ["fedhypevae", "weight-noise", "fedavg-cvae"]
    grid = Grid.model_validate(given)
    assert grid.name == "quickstart"
    assert (grid.alpha, grid.clients, grid.epsilon, grid.seeds) == ((0.1, 1.0), (10,), (1, 4, math.inf), (0, 1, 2))
    assert [spec.name for spec in grid.dataset] == ["digits"]


axis = {"unique": True, "min_size": 1, "max_size": 3}
grids = st.fixed_dictionaries(
    {"algorithms": st.sampled_from([["config-private"], ["config-open", {"name": "config-private", "params": {"beta": 0.25}}]])},
    optional={
        "alpha": st.lists(st.floats(1e-9, 1e9), **axis),
        "clients": st.lists(st.integers(1, 10**6), **axis),
        "epsilon": st.lists(st.floats(1e-9, math.inf), **axis),
        "seeds": st.lists(st.integers(0, 2**63 - 1), **axis),
        "delta": st.floats(1e-300, 0.1),
        "unit": st.sampled_from(["example", "client"]),
        "trust": st.sampled_from(["aggregate", "silo"]),
        "scan": st.fixed_dictionaries({"rate": st.lists(st.floats(0, 1), **axis)}),
        "partition": st.sampled_from([{"scheme": "dirichlet", "min_size": 5}]),
        "dataset": st.sampled_from(["milk10k", {"csv": "/a.csv", "split": {"by": "patient"}, "encoder": {"onnx": "/a.onnx", "size": 9}}]),
        "encoder": st.sampled_from(["dinov2-small", ["efficientnet-lite0", {"name": "facebook/dinov2-base", "views": 2}], None]),
    },
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grids)
def test_a_grid_survives_yaml_and_json(write, given):
    grid = load_grid(write(yaml.safe_dump(given)))
    assert grid == Grid.model_validate({"name": "g", **given})
    assert Grid.model_validate_json(grid.model_dump_json()) == grid
    assert load_grid(write(yaml.safe_dump(grid.model_dump(mode="json")))) == grid
    assert pickle.loads(pickle.dumps(grid)) == grid  # noqa: S301


def test_seeds_may_be_ranges_and_one_entry_may_have_a_scan_of_its_own(write):
    grid = load_grid(write("algorithms: [{name: config-private, scan: {beta: [1, 2]}}, config-open]\nseeds: [0-2, 7]"))
    assert grid.seeds == (0, 1, 2, 7)
    assert [variant.label for variant in resolve(grid).variants] == ["config-private beta=1", "config-private beta=2", "config-open"]
    assert load_grid(write("algorithms: config-open\nseeds: 0-4")).seeds == (0, 1, 2, 3, 4)


# ---- mistakes

BASE = "algorithms: [config-private]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "epsilon: [1, -1]", "g.yaml:2: epsilon[1]: -1 is not positive; give a number > 0"),
        (BASE + "epsilon:\n  - 1\n  - 0", "g.yaml:4: epsilon[1]: 0 is not positive"),
        (BASE + "epsilon: .nan", "g.yaml:2: epsilon: nan is not positive"),
        (BASE + "epsilon: yes", "g.yaml:2: epsilon: true is not a number"),
        (BASE + "epsilonn: 1", "g.yaml:2: epsilonn: unknown key 'epsilonn'; did you mean 'epsilon'?"),
        ("algoritms: [config-private]", "g.yaml:1: algoritms: unknown key 'algoritms'; did you mean 'algorithms'?"),
        ("alpha: 1", "g.yaml: algorithms: is missing"),
        (
            BASE + "evaluation:\n  per_clas: 3",
            "g.yaml:3: evaluation.per_clas: unknown key 'per_clas'; did you mean 'per_class'?",
        ),
        (BASE + "evaluation: {probe_c: .inf}", "evaluation.probe_c: "),
        (BASE + "alpha:", "g.yaml:2: alpha: has no value; give a number"),
        (BASE + "alpha: []", "g.yaml:2: alpha: is empty"),
        (BASE + "alpha: [1, 1.0]", "g.yaml:2: alpha: 1.0 is listed twice; remove one"),
        (BASE + "alpha: [0]", "alpha[0]: 0 is not positive"),
        (BASE + "alpha: .inf", "alpha: inf is not a finite number"),
        (BASE + "clients: 0", "clients: 0 is not >= 1"),
        (BASE + "clients: 2.5", "clients: 2.5 is not a whole number"),
        (BASE + "seeds: [0, -1]", "seeds[1]: -1 is not >= 0"),
        (BASE + "delta: 1", "delta: 1 is not <= 0.1"),
        (BASE + "delta: 0", "delta: 0 is not positive"),
        (
            BASE + "unit: exampel",
            "unit: unknown value 'exampel'; give example, client, or a group of rows by its column",
        ),
        (BASE + "trust: silos", "trust: unknown value 'silos'; give 'aggregate' or 'silo'"),
        (BASE + "privacy: {noise: secrets}", "privacy.noise: unknown value 'secrets'; give 'seeded' or 'secret'"),
        (BASE + "seeds: 4-0", "seeds: '4-0' is no range of up to 1000 numbers; give one such as 0-4"),
        (BASE + "seeds: [1, 0-2]", "seeds: 1 is listed twice"),
        (BASE + "alpha: 0-4", "alpha: '0-4' is not a number"),
        (BASE + "dataset: cifar10", "dataset: unknown data set 'cifar10'; known: chest-xray, digits, ham10000, hf:<dataset>"),
        (
            "algorithms: {name: config-private, params: {beta: [1, 2]}}",
            "params.beta: a list is not a number; give a number; or, to run each of several values, move them: scan: {beta: [1, 2]}",
        ),
        (
            "algorithms: {name: config-private, scan: {betta: [1]}}",
            "algorithms.scan.betta: config-private has no parameter 'betta'; did you mean 'beta'?",
        ),
        ("algorithms: {name: config-private, scan: {beta: [1, x]}}", "algorithms.scan.beta[1]: 'x' is not a number"),
        ("algorithms: {name: config-private, scan: {beta: 1}}\nscan: {beta: 2}", "scan.beta: algorithms[0].scan gives 'beta' too"),
        ("algorithms: {name: config-private, params: {beta: 1}, scan: {beta: 2}}", "algorithms.scan.beta: params gives it too"),
        (BASE + "name: a/b", "g.yaml:2: name: 'a/b' does not do as a folder name"),
        (BASE + "name: ..", "name: '..' does not do as a folder name"),
        (BASE + "partition:", "g.yaml:2: partition: has no value; give a mapping"),
        (BASE + "partition: {scheme: dirichlt}", "partition.scheme: unknown value 'dirichlt'; did you mean 'dirichlet'?"),
        (BASE + "partition: {scheme: column}", "partition: "),
        (BASE + "partition: {scheme: shards, labels: 0}", "g.yaml:2: partition.labels: 0 is not >= 1"),
        (BASE + "partition: {scheme: iid, labels: 3}", "g.yaml:2: partition: "),
        (BASE + "partition: {scheme: iid, strenth: 2}", "partition.strenth: unknown key 'strenth'; did you mean 'strength'?"),
        (BASE + "partition: {scheme: iid}\nalpha: [1, 2]", "g.yaml:3: alpha: 2 values, but scheme 'iid' does not use alpha"),
        (BASE + "dataset: 3", "g.yaml:2: dataset: 3 is neither a name nor a mapping; give a name or a mapping"),
        (BASE + "dataset:", "g.yaml:2: dataset: has no value; give a name or a mapping"),
        (BASE + "encoder: 3", "g.yaml:2: encoder: 3 is neither a name nor a mapping; give a name or a mapping"),
        (BASE + "null: 3", "g.yaml: the key null is not text; give a text key"),
        (BASE + "evaluation: {yes: 3}", "g.yaml:2: evaluation: the key true is not text"),
        (BASE + "scan: {null: [1]}", "g.yaml:2: scan: the key null is not text"),
        (BASE + "dataset: digit", "g.yaml:2: dataset: unknown data set 'digit'; did you mean 'digits'?"),
        (BASE + "dataset: [digits, {npzz: a.npz}]", "dataset[1].npzz: unknown key 'npzz'; did you mean 'npz'?"),
        (BASE + "dataset: [{npz: a/x.npz}, {npz: b/x.npz}]", "dataset: two data sets are called 'x'"),
        (BASE + "dataset: [digits, digits]", "dataset: 'digits' is listed twice"),
        (BASE + "resources: {clients_per_actor: alll}", "resources.clients_per_actor: 'alll' is neither"),
        (BASE + "resources: {cell_timeout: 2 weeks}", "g.yaml:2: resources.cell_timeout: '2 weeks' is not a time; give seconds"),
        (BASE + "resources: {cell_timeout: 0}", "resources.cell_timeout: 0 is not a time"),
        (BASE + "resources: {memory_per_cell: much}", "g.yaml:2: resources.memory_per_cell: 'much' is not an amount of memory"),
        (BASE + "resources: {memory_per_cell: 0}", "resources.memory_per_cell: 0 is not"),
        (BASE + "resources: {gpus_per_actor: 1.5}", "resources.gpus_per_actor: 1.5 is not a share of a GPU; give auto, a number in [0, 1]"),
        (BASE + "resources: {clients_per_actor: 0}", "resources.clients_per_actor: 0 is neither"),
        (
            "algorithms: [config-privat]",
            "g.yaml:1: algorithms[0]: unknown algorithm 'config-privat'; did you mean 'config-private'?",
        ),
        ("algorithms: [{nam: x}]", "algorithms[0].nam: unknown key 'nam'; did you mean 'name'?"),
        (
            "algorithms:\n- config-open\n- name: config-private\n  params:\n    betta: 1",
            "g.yaml:5: algorithms[1].params.betta: unknown key 'betta'; did you mean 'beta'?",
        ),
        ("algorithms: {name: config-private, params: {beta: -1}}", "g.yaml:1: algorithms.params.beta: -1 is not >= 0"),
        (
            "algorithms: {name: config-private, params: {schedule: {warmpu: 1}}}",
            "params.schedule.warmpu: unknown key 'warmpu'; did you mean 'warmup'?",
        ),
        (
            "algorithms: [config-open, {name: config-open, params: {beta: 1}}]",
            "algorithms[1]: 'config-open' is the same as 'config-open' of algorithms[0]; remove one",
        ),
        (
            "algorithms: [config-open, {name: config-open, params: {beta: 2}}]",
            "algorithms[1]: 'config-open' is also what algorithms[0] is called",
        ),
        (
            BASE + "scan: {betta: [1]}",
            "g.yaml:2: scan.betta: no algorithm of the grid has the parameter 'betta'; did you mean 'beta'?",
        ),
        (BASE + "scan: {beta: [1, x]}", "g.yaml:2: scan.beta[1]: 'x' is not a number"),
        (BASE + "scan: {beta: [1, 1.0]}", "scan.beta: 1.0 is listed twice"),
        (
            "algorithms: {name: config-private, params: {beta: 1}}\nscan: {beta: 2}",
            "g.yaml:2: scan.beta: algorithms[0].params gives 'beta' too",
        ),
        (BASE + "alpha: 1\nalpha: 2", "g.yaml:3: the key 'alpha' is given twice"),
        (BASE + "evaluation: {per_class: 1, per_class: 2}", "g.yaml:2: the key 'per_class' is given twice"),
        ("", "g.yaml: the file is empty"),
        ("# nothing", "g.yaml: the file is empty"),
        ("- a", "g.yaml: the top level is a list, not a mapping"),
        ("text", "g.yaml: the top level is 'text', not a mapping"),
        (BASE + "alpha: [1", "g.yaml:2: is not valid YAML"),
        ("a: 1\n---\nb: 1", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "g.yaml:1: is not valid YAML"),
        ("a: 2024-99-99", "is not valid YAML (month must be in 1..12"),
        ("a: !!bool x", "is not valid YAML"),
        (BASE + 'epsilon: "\\ud800"', "g.yaml:2: is not valid YAML ('\\ud800' is half a character)"),
        (BASE + '"\\udcff": 1', "g.yaml:2: is not valid YAML ('\\udcff' is half a character)"),
        (BASE + "audit: |\n  a\n  b", "g.yaml:2: audit: 'a b' is not a mapping"),
        ("a: &a [*a]", "g.yaml: is nested too deeply"),
        ("[" * 5000, "g.yaml: is nested too deeply"),
        (
            "a: &a [1,2,3,4,5,6,7,8,9]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
            "d: &d [*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e]",
            "stands for more than 100000 values",
        ),
    ],
)
def test_a_mistake_is_one_message_with_its_place(write, text, message):
    with pytest.raises(UserError) as caught:
        resolve(load_grid(write(text)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alpha=[0.3, -1]", "--set alpha[1]: -1 is not positive"),
        ("alpha=-1", "--set alpha: -1 is not positive"),
        ("alpah=1", "--set alpah: unknown key 'alpah'; did you mean 'alpha'?"),
        ("evaluation.per_clas=1", "--set evaluation.per_clas: unknown key"),
        ("evaluation={per_class: 0}", "--set evaluation.per_class: 0 is not >= 1"),
        ("dataset.limit=5", "--set dataset: names no data"),
        ("name.x=5", "--set name.x: 'name' is not a mapping in the grid file; set name as a whole"),
        ("algorithms=[nope]", "--set algorithms[0]: unknown algorithm 'nope'"),
        ("alpha", "--set alpha: is not of the form key=value"),
        ("=1", "--set =1: is not of the form key=value"),
        ("alpha=", "--set alpha: has no value"),
        ("alpha=[1", "--set alpha: is not valid YAML"),
        ("evaluation={per_class: 1, per_class: 2}", "--set evaluation: the key 'per_class' is given twice"),
    ],
)
def test_a_mistake_in_an_override_names_it(write, override, message):
    with pytest.raises(UserError) as caught:
        resolve(load_grid(write(BASE + "name: x"), [override]))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00binary", b"\x00\x01\x02", b"\x89PNG\r\n\x1a\n"])
def test_a_binary_file_is_not_a_grid(tmp_path, content):
    (tmp_path / "g.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"not a text file|not valid YAML"):
        load_grid(tmp_path / "g.yaml")


@pytest.mark.parametrize("endless", ["/dev/zero", "long.yaml"])
def test_what_is_much_too_long_is_not_a_grid(tmp_path, endless):
    (tmp_path / "long.yaml").write_text(f"{BASE}# {'x' * 2**20}")
    with pytest.raises(UserError, match=r"is larger than 1048576 bytes; give a grid file"):
        load_grid(tmp_path / endless)


def test_a_folder_or_nothing_is_not_a_grid(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        load_grid(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        load_grid(tmp_path / "none.yaml")


def test_a_file_name_that_is_no_folder_name_asks_for_a_name(write):
    with pytest.raises(UserError, match="name: 'my grid' does not do as a folder name"):
        load_grid(write(BASE, "my grid.yaml"))


def grid_or_complaint(path):
    try:
        return resolve(load_grid(path)).grid
    except UserError as error:
        return str(error)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(Grid.model_fields)), values)
def test_any_value_at_any_key_is_a_grid_or_one_message(write, key, value):
    path = write(yaml.safe_dump({"algorithms": ["config-private"], key: value}))
    outcome = grid_or_complaint(path)
    assert isinstance(outcome, Grid) or outcome.startswith(f"{path}")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="[]{}:,-#&*!|>'\"%@ \n\tab1.?<~=", max_size=30))
def test_any_text_is_one_message(write, text):
    with pytest.raises(UserError):
        resolve(load_grid(write(text)))


# ---- expansion


def test_noise_is_secret_only_where_there_is_an_epsilon_to_keep():
    assert [cell.noise for cell in cells_of(grid_of(privacy={"noise": "secret"}))] == ["secret", "seeded"]


def test_epsilon_multiplies_private_algorithms_only():
    cells = cells_of(grid_of(epsilon=[1, math.inf], seeds=[0, 1], clients=[2, 3]))
    assert len(cells) == 2 * 2 * (2 + 1)
    assert {cell.epsilon for cell in cells if cell.algorithm == "config-open"} == {None}
    assert {cell.epsilon for cell in cells if cell.algorithm == "config-private"} == {1.0, math.inf}


def test_cells_of_a_partition_come_together_in_the_grid_s_order():
    cells = cells_of(grid_of(epsilon=[4, 1], seeds=[1, 0], alpha=[1, 0.1]))
    assert [(c.alpha, c.seed) for c in cells[::3]] == [(1, 1), (1, 0), (0.1, 1), (0.1, 0)]
    assert [(c.algorithm, c.epsilon) for c in cells[:3]] == [
        ("config-private", 4),
        ("config-private", 1),
        ("config-open", None),
    ]


def test_params_are_complete():
    cell = cells_of(grid_of(algorithms={"name": "config-private", "params": {"beta": 2}}))[0]
    assert cell.params == {"beta": 2.0, "rate": 1e-3, "schedule": {"warmup": 3}}


def test_scan_multiplies_the_algorithms_that_have_the_parameter():
    cells = cells_of(grid_of(scan={"rate": [0.1, 0.2], "beta": 3}))
    assert [cell.label for cell in cells] == [
        "config-private rate=0.1 beta=3",
        "config-private rate=0.2 beta=3",
        "config-open beta=3",
    ]
    assert [cell.params.get("rate") for cell in cells] == [0.1, 0.2, None]


def test_a_cell_survives_json():
    for cell in cells_of(grid_of(epsilon=[1, math.inf])):
        assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert '"epsilon":"inf"' in cells_of(grid_of(epsilon=math.inf))[0].model_dump_json()


def test_ids_ignore_what_cannot_change_a_result():
    base = ids(seeds=[0, 1], epsilon=[1, 4])
    assert len(set(base)) == len(base)
    assert set(ids(seeds=[1, 0], epsilon=[4, 1], algorithms=["config-open", "config-private"])) == set(base)
    assert ids(seeds=[0, 1], epsilon=[1, 4], resources={"clients_per_actor": 3, "cpus_per_actor": 2}, name="x") == base
    spelled = [{"name": "config-private", "label": "A", "params": {"beta": 1}}, {"name": "config-open", "label": "B"}]
    assert ids(seeds=[0, 1], epsilon=[1, 4], algorithms=spelled) == base


@pytest.mark.parametrize(("given", "seconds"), [("2h", 7200), ("90m", 5400), ("1.5d", 129600), ("30 s", 30), (45, 45)])
def test_a_time_is_seconds_or_a_number_with_its_unit(given, seconds):
    assert grid_of(resources={"cell_timeout": given}).resources.cell_timeout == seconds


@pytest.mark.parametrize(("given", "size"), [("4GB", 4 * 10**9), ("500 MB", 5 * 10**8), ("1GiB", 2**30), (1000, 1000)])
def test_memory_is_bytes_or_a_number_with_its_unit(given, size):
    assert grid_of(resources={"memory_per_cell": given}).resources.memory_per_cell == size


def test_ids_ignore_where_the_data_are():
    here, there = (cells_of(grid_of(dataset={"npz": path})) for path in ("/a/x.npz", "/b/y.npz"))
    assert [cell.cell_id for cell in here] == [cell.cell_id for cell in there]
    assert here[0].dataset != there[0].dataset


@pytest.mark.parametrize("scheme", ["iid", "feature-shift"])
def test_ids_ignore_an_alpha_that_the_scheme_ignores(scheme):
    assert ids(partition={"scheme": scheme}, alpha=1) == ids(partition={"scheme": scheme}, alpha=2)


@pytest.mark.parametrize(
    "change",
    [
        {"algorithms": ["config-open"]},
        {"algorithms": {"name": "config-private", "params": {"beta": 2}}},
        {"scan": {"rate": 0.5}},
        {"partition": {"scheme": "iid"}},
        {"partition": {"scheme": "feature-shift"}},
        {"partition": {"scheme": "feature-shift", "strength": 1.0}},
        {"partition": {"min_size": 3}},
        {"alpha": 0.31},
        {"clients": 9},
        {"epsilon": 1.5},
        {"epsilon": math.inf},
        {"delta": 1e-5},
        {"unit": "client"},
        {"trust": "silo"},
        {"seeds": 1},
        {"evaluation": {"per_class": 201}},
        {"evaluation": {"probe_c": 0.2}},
    ],
)
def test_ids_follow_whatever_can_change_a_result(change):
    assert ids(**{"algorithms": "config-private", **change}) != ids(algorithms="config-private")


def test_ids_follow_the_content_of_the_data():
    grid = grid_of()
    before = cells_of(grid)
    assert cells_of(grid, digits=toy(seed=1))[0].cell_id != before[0].cell_id


@pytest.mark.parametrize("change", [{"epsilon": 7}, {"delta": 1e-9}, {"unit": "client"}, {"trust": "silo"}])
def test_a_budget_is_no_part_of_a_cell_without_one(change):
    assert ids(algorithms="config-open", **change) == ids(algorithms="config-open")


def test_two_data_sets_of_the_same_content_are_refused():
    with pytest.raises(UserError, match=r"dataset\[1\]: has the same content as dataset\[0\]; remove one"):
        cells_of(grid_of(dataset=[{"npz": "/a.npz"}, {"npz": "/b.npz"}]))


def test_more_clients_than_the_data_allow_are_named_by_place(write):
    grid = load_grid(write(BASE + "dataset: [digits, {npz: a.npz}]\nclients:\n  - 5\n  - 40"))
    with pytest.raises(UserError) as caught:
        cells_of(grid, digits=toy(rows=90), a=toy(rows=60))
    assert "g.yaml:5: clients[1] with data set 'a': 40 clients × 2 (partition.min_size) = 80 rows, but there are 60" in str(caught.value)


def test_a_column_that_the_data_lack_is_named_by_place(write):
    grid = load_grid(write(BASE + "partition:\n  scheme: column\n  column: site"))
    with pytest.raises(UserError, match=r"g.yaml:4: partition.column: the data set has no column 'site'"):
        cells_of(grid)


def test_a_class_that_derives_from_another_has_ids_of_its_own():
    @register("config-derived")
    class Derived(Private):
        pass

    assert ids(algorithms="config-derived") != ids(algorithms="config-private")


def test_a_spec_s_key_finds_the_data():
    grid = grid_of(dataset=["digits", {"name": "digits", "limit": 30}])
    data = {DatasetSpec(name="digits").key: toy(0), DatasetSpec(name="digits", limit=30).key: toy(1, rows=30)}
    assert [c.dataset_hash for c in expand(resolve(grid), data)[::2]] == [each.fingerprint for each in data.values()]


@pytest.mark.parametrize(
    ("given", "weight"),
    [("true", "synthetic"), ("synthetic", "synthetic"), ("held-out", "held-out"), ("0.3", 0.3), ("1", 1), ("false", None)],
)
def test_the_second_protocol_takes_a_word_or_a_weight(tmp_path, given, weight):
    (tmp_path / "g.yaml").write_text(f"algorithms: [dp-gaussian]\nevaluation: {{personal: {given}}}\n")
    assert load_grid(tmp_path / "g.yaml").evaluation.personal == weight


@pytest.mark.parametrize("given", ["1.5", "-1", "best", "[1]"])
def test_another_weight_is_a_mistake_with_its_place(tmp_path, given):
    (tmp_path / "g.yaml").write_text(f"algorithms: [dp-gaussian]\nevaluation: {{personal: {given}}}\n")
    with pytest.raises(UserError, match=r"g.yaml:2: evaluation.personal: .* give synthetic, held-out or a number in \[0, 1\]"):
        load_grid(tmp_path / "g.yaml")


def test_a_grid_without_the_second_protocol_keeps_its_cell_ids(tmp_path):
    ids = []
    for evaluation in ("{per_class: 20}", "{per_class: 20, personal: false}", "{per_class: 20, personal: true}"):
        (tmp_path / "g.yaml").write_text(f"algorithms: [dp-gaussian]\nevaluation: {evaluation}\n")
        grid = load_grid(tmp_path / "g.yaml")
        data = {spec.key: load(spec) for spec in grid.dataset}
        ids.append([cell.cell_id for cell in expand(resolve(grid), data)])
    assert ids[0] == ids[1] != ids[2]
