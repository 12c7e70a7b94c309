import json
import shutil
from pathlib import Path

import pytest
import torch
from pictures import picture, save_encoder
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from fedsim.data.encoder import ImageEncoder, locate
from fedsim.data.spec import EncoderSpec
from fedsim.errors import UserError

PICTURES = [picture(n) for n in range(4)]


def embedded(spec, pool="cls"):
    made = ImageEncoder(locate(spec.model_copy(update={"pool": pool})), "cpu")
    return made.embed(made.pixels(PICTURES))


def test_pooling_is_the_class_token_the_mean_of_the_patches_or_both(encoder):
    model, processor = AutoModel.from_pretrained(encoder.name), AutoImageProcessor.from_pretrained(encoder.name)
    with torch.inference_mode():
        tokens = model(**processor(images=PICTURES, return_tensors="pt")).last_hidden_state
    assert tokens.shape == (4, 5, 16)
    torch.testing.assert_close(embedded(encoder), tokens[:, 0])
    torch.testing.assert_close(embedded(encoder, "mean"), tokens[:, 1:].mean(1))
    torch.testing.assert_close(embedded(encoder, "cls+mean"), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


def test_the_digest_follows_weights_and_preprocessing(tmp_path, encoder):
    copied = Path(shutil.copytree(encoder.name, tmp_path / "copy"))
    assert locate(EncoderSpec(name=str(copied))).digest == locate(encoder).digest
    config = json.loads((copied / "preprocessor_config.json").read_text())
    (copied / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.1, 0.2, 0.3]}))
    others = [locate(EncoderSpec(name=str(copied))), locate(save_encoder(tmp_path / "other", seed=1))]
    assert len({each.digest for each in [locate(encoder), *others]}) == 3


def test_a_local_folder_is_taken_from_the_grids_folder(tmp_path, monkeypatch):
    (tmp_path / "grids/dino").mkdir(parents=True)
    assert EncoderSpec(name="dino").within(tmp_path / "grids").name == str(tmp_path / "grids/dino")
    assert EncoderSpec(name="facebook/dinov2-base").within(tmp_path).name == "facebook/dinov2-base"


def test_an_encoder_that_cannot_be_had_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        locate(EncoderSpec(name="facebook/dinov2-nano"))
    assert "is not on this machine and cannot be downloaded" in caught.value.what
    assert "hf download facebook/dinov2-nano" in caught.value.hint
    with pytest.raises(UserError, match="there is no folder 'no/such/folder'"):
        locate(EncoderSpec(name="no/such/folder"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "names no encoder or two; give a name"),
        ({"name": "a", "onnx": "b.onnx"}, "names no encoder or two"),
        ({"name": "a", "size": 112}, "a named encoder takes no size"),
        ({"onnx": "a.onnx", "revision": "b"}, "takes no revision"),
        ({"onnx": "a.onnx", "dtype": "bfloat16"}, "computes as it was exported; give dtype: float32"),
        ({"onnx": "a.onnx", "std": [1, 0, 1]}, "std has a value that is not positive"),
    ],
)
def test_a_wrong_encoder_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EncoderSpec.model_validate(given)


def test_weights_that_are_not_used_are_not_reported_and_those_that_lack_are(tmp_path, encoder, capfd):
    folder = Path(shutil.copytree(encoder.name, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"head.weight": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    embedded(EncoderSpec(name=str(folder)))
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    gone = next(name for name in weights if name.endswith("mlp.fc1.weight"))
    save_file({name: value for name, value in weights.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"cannot be loaded .there are no weights of {gone}"):
        embedded(EncoderSpec(name=str(folder)))


def test_encoders_in_the_cache_are_known_by_name(cache, encoder):
    shutil.copytree(encoder.name, cache / "encoders/dino")
    assert locate(EncoderSpec(name="dino")).digest == locate(encoder).digest
    lite = EncoderSpec.model_validate("efficientnet-lite0")
    assert (lite.onnx, lite.size, lite.display) == (cache / "encoders/efficientnet-lite0.onnx", 112, "efficientnet-lite0")
    with pytest.raises(UserError, match=r"there is no such file; .* benchmarks/encoders.py of a checkout makes those that are known"):
        locate(lite)


def test_code_in_an_encoders_folder_neither_runs_nor_is_asked_about(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: "y")
    copied = Path(shutil.copytree(encoder.name, tmp_path / "copy"))
    (copied / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (copied / "config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="cannot be loaded"):
        ImageEncoder(locate(EncoderSpec(name=str(copied))), "cpu")
    assert not (tmp_path / "ran").exists()
