"""Made-up rows in the layout of the real files: FLamby's two tables of TCGA-BRCA, the UCI archive's four of Heart Disease."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fedsim.data.embeddings import Embeddings
from fedsim.data.sources.flamby import HOSPITALS, REGIONS
from fedsim.data.sources.load import load
from fedsim.data.sources.spec import DatasetSpec
from fedsim.errors import UserError

COVARIATES = ("age_at_index", "race_white", "primary_diagnosis_Infiltrating duct carcinoma, NOS")


def federation(name: str, root: Path) -> Embeddings:
    return load(DatasetSpec.model_validate({"name": f"flamby:{name}", "root": root}))


def save_tcga(root: Path, patients: int = 48) -> Path:
    head = ",".join(["pid", *(f'"{name}"' for name in COVARIATES), "E", "T"])
    rows = [f"TCGA-{i:04d},{30 + i},{i % 2},{i % 3 % 2},{float(i // 6 % 2)},{100.0 + i}" for i in range(patients)]
    extra = "TCGA-9999,50,1,0,0.0,1.0"  # FLamby's table has patients that its split leaves out
    (root / "brca.csv").write_text("\n".join([head, *rows, extra]) + "\n")
    folds = [(f"TCGA-{i:04d}", "test" if i % 4 == 3 else "train", i % 6) for i in reversed(range(patients))]
    lines = [f"{pid},{fold},{fold}_{region}" for pid, fold, region in folds]
    (root / "train_test_split.csv").write_text("\n".join(["pid,fold,fold2", *lines]) + "\n")
    return root


def save_heart(root: Path, rows: int = 20) -> Path:
    for file in HOSPITALS:
        lines = [f"{40 + i},{i % 2},{1 + i % 4},120,{200 + i},0,{i % 3},150,0,1.5,?,?,?,{i % 3}" for i in range(rows)]
        (root / f"processed.{file}.data").write_text("\n".join([*lines, "50,1,?,120,200,0,0,150,0,1.5,2,0,3,1"]) + "\n")
    return root


def test_tcga_brca_has_the_patients_of_its_split_with_their_regions(tmp_path: Path) -> None:
    data = federation("tcga-brca", save_tcga(tmp_path))
    assert (data.name, data.dim, len(data.x_train), len(data.x_test)) == ("tcga-brca", 3, 36, 12)
    assert data.class_names == ("no death seen", "death")
    assert set(data.columns["site"]) == set(REGIONS)
    assert data.columns.keys() == {"site", "patient", "days"}
    row = data.columns["patient"].tolist().index("TCGA-0008")
    assert (data.columns["site"][row], data.columns["days"][row], data.y_train[row]) == ("West", 108.0, 1)
    # age 38 of 100, white no, duct carcinoma no: the row has unit norm whatever the others are
    assert data.x_train[row] == pytest.approx([1.0, 0.0, 0.0])
    np.testing.assert_allclose(np.linalg.norm(data.x_train, axis=1), 1.0, rtol=1e-6)


def test_heart_disease_leaves_out_rows_with_gaps_and_has_13_columns_and_4_hospitals(tmp_path: Path) -> None:
    data = federation("heart-disease", save_heart(tmp_path))
    assert (data.name, data.dim, data.class_names) == ("heart-disease", 13, ("healthy", "disease"))
    assert set(data.columns["site"]) == set(HOSPITALS.values())
    # FLamby's split: 0.66 of a hospital's 20 complete rows, rounded down
    assert (len(data.x_train), len(data.x_test)) == (4 * 13, 4 * 7)


def test_a_rows_columns_depend_on_no_other_row(tmp_path: Path) -> None:
    """FLamby's own standardisation, by means of the data, would be a release that nobody counted."""
    whole, fewer = tmp_path / "whole", tmp_path / "fewer"
    for root, rows in ((whole, 20), (fewer, 12)):
        root.mkdir()
        save_heart(root, rows)
    one, other = federation("heart-disease", whole), federation("heart-disease", fewer)
    known = {row.tobytes() for row in np.concatenate([one.x_train, one.x_test])}
    assert all(row.tobytes() in known for row in np.concatenate([other.x_train, other.x_test]))


@pytest.mark.parametrize(("name", "file", "url"), [("tcga-brca", "brca.csv", "FLamby"), ("heart-disease", "processed.cle", "uci.edu")])
def test_a_missing_file_is_named_with_where_to_get_it(tmp_path: Path, name: str, file: str, url: str) -> None:
    with pytest.raises(UserError, match=rf"there is no {file}.*download the files of flamby:{name} from .*{url}.*root:"):
        federation(name, tmp_path)


def test_files_that_are_no_such_tables_are_one_message(tmp_path: Path) -> None:
    save_heart(tmp_path)
    (tmp_path / "processed.va.data").write_text("a,b,c,d,e,f,g,h,i,j,k,l,m,n\n")
    with pytest.raises(UserError, match=r"processed.va.data: holds what is no number"):
        federation("heart-disease", tmp_path)
    save_tcga(tmp_path)
    (tmp_path / "train_test_split.csv").write_text("pid,fold,fold2\nTCGA-0001,train,train_7\n")
    with pytest.raises(UserError, match="the split has the region '7'"):
        federation("tcga-brca", tmp_path)
    (tmp_path / "train_test_split.csv").write_text("pid,fold,fold2\nTCGA-7777,train,train_0\n")
    with pytest.raises(UserError, match="lacks patients of the split"):
        federation("tcga-brca", tmp_path)


def test_an_unknown_federation_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"unknown federation 'flamby:ixi'; known: heart-disease, tcga-brca"):
        DatasetSpec(name="flamby:ixi")
