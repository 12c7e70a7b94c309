"""``fedsim audit``: what it says, that it goes on, and one message for each mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benches import Done, Ran
from cells import small_grid

Command = Callable[..., Done]


def test_an_interrupted_audit_goes_on_and_more_pairs_are_added(folder: Path, command: Command) -> None:
    whole = command("audit", "dp-gaussian", "--pairs", "20", "--out", "whole")
    assert whole.returncode == 0
    assert "not refuted: ε = 4 claimed" in whole.stdout
    lines = (folder / "whole/pairs.jsonl").read_text().splitlines()
    (folder / "cut").mkdir()
    (folder / "cut/pairs.jsonl").write_text("\n".join(lines[:7]) + lines[7][:20])
    assert command("audit", "dp-gaussian", "--pairs", "20", "--out", "cut").stdout == whole.stdout
    assert sorted((folder / "cut/pairs.jsonl").read_text().splitlines()) == sorted(lines)
    command("audit", "dp-gaussian", "--pairs", "24", "--out", "cut")
    assert [json.loads(line)["pair"] for line in (folder / "cut/pairs.jsonl").read_text().splitlines()] == list(range(24))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("refused:Exits", ": SystemExit: 0"),
        pytest.param("refused:Interrupted", "ProcessEnded: a training ended its process", marks=pytest.mark.slow),
    ],
)
def test_a_plug_in_that_ends_its_training_ends_no_audit_well(path: str, message: str, folder: Path, command: Command) -> None:
    done = command("audit", f"broken.{path}", "--pairs", "12")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_what_a_module_keeps_of_its_first_rows_refutes_a_claim_and_a_constant_does_not(folder: Path, command: Command) -> None:
    options = ("--param", "rounds=1", "--param", "sample_rate=1", "--pairs", "12")
    done = command("audit", "broken.clips:ScaledByTheFirstBatch", *options)
    assert done.returncode == 1
    assert "of the claimed sensitivity, which is exceeded" in done.stdout
    done = command("audit", "broken.clips:ScaledByAConstant", *options)
    assert (done.returncode, "canary 1.00 of the claimed sensitivity" in done.stdout) == (0, True)


def test_a_refuted_claim_is_exit_code_1(folder: Path, command: Command) -> None:
    done = command("audit", "broken.clips:UnclippedPart", "--param", "clip=0.1", "--param", "rounds=1", "--pairs", "12")
    assert done.returncode == 1
    assert "REFUTED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["centralised"], "algorithm centralised: has no privacy to audit; give a private one"),
        (["dp-gaussian", "--pairs", "8"], "pairs: 8 are too few: even an attack without an error would bound nothing; give 12 or more"),
        (["dp-gaussian", "--epsilon", "inf"], "is no claim that an audit could refute"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(arguments: list[str], message: str, folder: Path, command: Command) -> None:
    done = command("audit", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(folder.iterdir()) == []


def test_a_run_folder_is_attacked_by_its_synthetic_rows(bench: Callable[..., Ran], folder: Path, command: Command) -> None:
    bench(small_grid("dp-gaussian"), "run")
    done = command("audit", "run")
    assert done.returncode == 0
    *lines, why = done.stdout.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["likelihood", "nearest synthetic row"]
    assert all("TPR" in line for line in lines)
    assert why.startswith("no LiRA: cells that differ in their seed alone trained on the same rows")
