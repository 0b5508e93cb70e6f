import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_zeros

import nfsd3d
from nfsd3d.errors import InputError
from nfsd3d.prior.files import locate as locating
from nfsd3d.prior.files.check_folder import check_folder
from nfsd3d.prior.files.download import fetch
from nfsd3d.prior.files.folder import AUTOENCODER, LAYOUT, ModelFiles
from nfsd3d.prior.files.locate import ALIASES, Location, ModelSource, locate
from nfsd3d.prior.files.scheduler_config import prediction_type

FILES = (
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
)


def write_files(folder, files=FILES):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


def write_cached(cache, hub_id, files=FILES):
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    return write_files(repository / "snapshots/abc", files)


def test_a_complete_folder_is_taken(tmp_path):
    folder = write_files(tmp_path / "model")
    assert locate("shapes", str(folder)) == ModelSource(Location(f"prior.model={folder}", folder))
    assert fetch(locate("sd21", str(folder))) == ModelFiles(folder)


def test_the_embedded_model_is_in_the_package(tmp_path, monkeypatch):
    assert Path(nfsd3d.__file__).parent / "prior" / "shapes" == locating.EMBEDDED
    monkeypatch.setattr(locating, "EMBEDDED", write_files(tmp_path / "shapes"))
    assert locate("shapes").folder == tmp_path / "shapes"


@pytest.mark.parametrize("missing", [name for name in FILES if "/" in name and not name.startswith("tokenizer")])
def test_an_incomplete_folder_names_the_missing_file(tmp_path, missing):
    folder = write_files(tmp_path / "model", [name for name in FILES if name != missing])
    part = missing.split("/")[0]
    with pytest.raises(InputError, match=rf"prior\.model=.* lacks {part}/.*{missing.rsplit('.', 1)[1]}"):
        locate("shapes", str(folder))


def test_a_tokenizer_comes_in_two_forms(tmp_path):
    others = [name for name in FILES if not name.startswith("tokenizer")]
    assert check_folder(write_files(tmp_path / "a", [*others, "tokenizer/tokenizer.json"]), "x")
    with pytest.raises(InputError, match=r"x: .* lacks tokenizer/vocab\.json"):
        check_folder(write_files(tmp_path / "b", [*others, "tokenizer/vocab.json"]), "x")


def test_pickled_weights_do_not_count(tmp_path):
    files = [name.replace("model.safetensors", "model.bin") if name.startswith("unet") else name for name in FILES]
    with pytest.raises(InputError, match=r"unet/\*\.safetensors"):
        check_folder(write_files(tmp_path, files), "prior.model")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("diffusion_pytorch_model.bin", ", which may run code when it is read; convert it"),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", " without an index; download the whole folder again"),
        ("diffusion_pytorch_model.pruned.safetensors", "; rename it to diffusion_pytorch_model.safetensors, .*"),
    ],
)
def test_weights_in_another_form_are_named_with_what_makes_them_loadable(tmp_path, name, said):
    others = [path for path in FILES if path != "unet/diffusion_pytorch_model.safetensors"]
    folder = write_files(tmp_path, [*others, f"unet/{name}"])
    with pytest.raises(InputError, match=rf"^prior\.model=.* lacks unet/\*\.safetensors \(it has {name}{said}\); a"):
        locate("shapes", str(folder))


def test_a_folder_that_cannot_be_read_is_an_error_of_its_setting(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "model")
    (folder / "unet/back").symlink_to(folder)
    assert check_folder(folder, "x") == folder  # a link to a parent folder is harmless
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"^prior\.model=.*loop: no such folder"):
        locate("shapes", str(tmp_path / "loop"))
    original = Path.iterdir

    def forbidden(self):
        if self.name == "unet":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(
        InputError, match=r"^prior\.model=.*: .*unet cannot be read \(Permission denied\); check the path"
    ):
        locate("shapes", str(folder))


def test_a_missing_path_fails_at_once_and_without_torch():
    code = """
import sys, time
begin = time.perf_counter()
from nfsd3d.errors import InputError
from nfsd3d.prior.files.locate import locate
try:
    locate("sd21", "/no/such/folder")
except InputError as error:
    assert "/no/such/folder" in str(error)
    assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
    assert time.perf_counter() - begin < 1
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7


@pytest.mark.parametrize(
    "model", ["./nothing", "nothing", "~/nothing-here", "a/b/c", "weights.safetensors", "a\\b", ""]
)
def test_paths_are_not_looked_up_on_the_hub(model, no_hub_cache):
    with pytest.raises(InputError, match=r"prior\.model=.*no such (folder|file).*prior=shapes"):
        locate("sd21", model)


def test_a_typing_error_beside_an_existing_folder_is_a_path(tmp_path, monkeypatch, no_hub_cache):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        locate("sd21", "models/mine")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"prior=sd99.*shapes, shapes-flow, sd15, sd21, sd21-768"):
        locate("sd99")


@pytest.mark.parametrize("name", ALIASES)
def test_offline_without_a_copy_names_every_id_and_the_way_out(name, no_hub_cache):
    with pytest.raises(InputError) as error:
        locate(name, offline=True)
    assert all(hub_id in str(error.value) for hub_id in ALIASES[name])
    assert f"prior={name}" in str(error.value) and "prior=shapes" in str(error.value)


def test_the_environment_can_say_offline(no_hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"prior\.model=some/model is not available.*offline"):
        locate("sd21", "some/model")


def test_online_the_ids_are_kept_in_order_and_nothing_is_asked_yet(no_hub_cache, monkeypatch):
    import huggingface_hub

    def ask(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    assert locate("sd21") == ModelSource(Location("prior=sd21", None, ALIASES["sd21"]))
    assert locate("sd21", "some/model") == ModelSource(Location("prior.model=some/model", None, ("some/model",)))


def test_a_cached_copy_is_taken_even_offline_and_whichever_id_it_has(no_hub_cache):
    folder = write_cached(no_hub_cache, ALIASES["sd21"][-1])
    assert locate("sd21", offline=True) == ModelSource(Location("prior=sd21", folder))


def test_a_cached_copy_without_one_of_several_weight_files_is_not_taken(no_hub_cache):
    index, shards = "diffusion_pytorch_model.safetensors.index.json", ("x-00001-of-00002.safetensors", "y")
    files = [name for name in FILES if name != "unet/diffusion_pytorch_model.safetensors"]
    folder = write_cached(no_hub_cache, ALIASES["sd21"][0], [*files, f"unet/{index}", f"unet/{shards[0]}"])
    content = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}
    (folder / "unet" / index).write_text(json.dumps(content))
    assert locate("sd21").missing
    (folder / "unet" / shards[1]).write_bytes(b"")
    assert not locate("sd21").missing


def test_an_incomplete_cached_copy_is_not_taken(no_hub_cache):
    write_cached(no_hub_cache, "some/model", [name for name in FILES if not name.startswith("vae")])
    with pytest.raises(InputError, match="not available"):
        locate("sd21", "some/model", offline=True)


class Hub:
    """Stands in for the hub: the files of each repository, and which of them were asked for."""

    def __init__(self, monkeypatch, repositories, cache):
        import huggingface_hub

        self.repositories, self.cache, self.patterns = repositories, cache, {}
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _, hub_id, timeout: self.info(hub_id))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def info(self, hub_id):
        from types import SimpleNamespace

        answer = self.repositories[hub_id]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in answer])

    def download(self, hub_id, allow_patterns):
        self.patterns[hub_id] = allow_patterns
        return str(self.cache / hub_id)


def unreachable():
    from huggingface_hub.errors import HTTPError

    return HTTPError("Name or service not known")


def no_repository():
    from types import SimpleNamespace

    from huggingface_hub.errors import RepositoryNotFoundError

    return RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))


def test_fetch_tries_the_mirrors_in_order(monkeypatch, tmp_path):
    half = [name.replace("model.safetensors", "model.fp16.safetensors") for name in FILES if name.startswith("unet")]
    hub = Hub(monkeypatch, {"a/a": no_repository(), "b/b": ["README.md"], "c/c": [*FILES, *half]}, tmp_path)
    source = ModelSource(Location("prior=x", None, ("a/a", "b/b", "c/c")))
    assert fetch(source) == ModelFiles(tmp_path / "c/c")
    assert list(hub.patterns) == ["c/c"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.patterns["c/c"]
    assert "unet/diffusion_pytorch_model.safetensors" not in hub.patterns["c/c"]
    assert "text_encoder/model.safetensors" in hub.patterns["c/c"]


def test_fetch_says_what_it_tried_and_why_it_failed(monkeypatch, tmp_path):
    Hub(monkeypatch, {"a/a": no_repository(), "b/b": unreachable(), "c/c": FILES[:-1]}, tmp_path)
    with pytest.raises(InputError) as error:
        fetch(ModelSource(Location("prior=x", None, ("a/a", "b/b", "c/c"))))
    assert str(error.value).startswith("prior=x is not available. Tried a/a: no such repository; b/b: the hub cannot")
    assert "Name or service not known" in str(error.value)
    assert "c/c: lacks scheduler/scheduler_config.json" in str(error.value)
    assert "prior=shapes" in str(error.value) and "\n" not in str(error.value)


TEXT_WIDTH = 24
SINGLE = {
    "model.diffusion_model.input_blocks.0.0.weight": [8, 4, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [8, TEXT_WIDTH],
    "first_stage_model.encoder.conv_in.weight": [8, 3, 3, 3],
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": [9, TEXT_WIDTH],
}
"""Names and shapes of some tensors in a file in the layout of the original code."""


def write_layout(folder):
    """The files of a model that are not weights."""
    write_files(folder, [name for name in FILES if not name.endswith("safetensors")])
    (folder / "unet/config.json").write_text(json.dumps({"in_channels": 4, "cross_attention_dim": TEXT_WIDTH}))
    return folder


def test_a_single_file_takes_its_configurations_from_a_folder(tmp_path, no_hub_cache):
    path, layout = write_zeros(tmp_path / "model.safetensors", SINGLE), write_layout(tmp_path / "layout")
    source = locate("shapes", str(path), layout=str(layout))
    assert source == ModelSource(Location(f"prior.layout={layout}", layout, (), LAYOUT), path)
    assert fetch(source) == ModelFiles(layout, path) and fetch(source).weights() == [path]


def test_a_single_file_takes_its_configurations_from_the_cache_without_weights(tmp_path, no_hub_cache):
    path = write_zeros(tmp_path / "model.safetensors", SINGLE)
    snapshot = write_layout(no_hub_cache / "models--Manojb--stable-diffusion-2-1-base/snapshots/abc")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    assert locate("sd21", str(path), offline=True).folder == snapshot
    with pytest.raises(InputError, match=r"prior=sd21 is not available"):
        locate("sd21", offline=True)  # for the model itself they are not enough


def test_the_configurations_of_a_single_file_are_downloaded_without_weights(tmp_path, monkeypatch, no_hub_cache):
    path, first = write_zeros(tmp_path / "model.safetensors", SINGLE), ALIASES["sd15"][0]
    hub = Hub(monkeypatch, {first: FILES}, tmp_path)
    write_layout(tmp_path / first)
    assert fetch(locate("sd15", str(path))) == ModelFiles(tmp_path / first, path)
    assert not [pattern for pattern in hub.patterns[first] if "safetensors" in pattern]
    assert {"unet/config.json", "tokenizer/*", "scheduler/*"} <= set(hub.patterns[first])


def test_a_single_file_alone_does_not_say_what_it_is(tmp_path):
    path = write_zeros(tmp_path / "model.safetensors", SINGLE)
    with pytest.raises(InputError, match=r"give prior=sd15 or sd21 or sd21-768 too, or prior\.layout=FOLDER"):
        locate("shapes", str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": [8, 9, 3, 3]}, r"takes 9 channels and text of width 24"),
        (
            {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [8, 768]},
            r"text of width 768, where .*layout says 4 and 24; choose another of prior=sd15",
        ),
        ({"model.diffusion_model.input_blocks.0.0.weight": [8]}, r"takes 0 channels and text of width 24"),
        (
            {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [8]},
            r"takes 4 channels and text of width 0",
        ),
        ({"first_stage_model.encoder.conv_in.weight": None}, r"holds no vae \(no tensor first_stage_model\.\*\)"),
        ({name: None for name in SINGLE if name.startswith("cond")}, r"holds no text_encoder"),
        ({name: None for name in SINGLE}, r"holds no unet"),
    ],
)
def test_a_single_file_of_another_kind_is_refused_before_it_is_loaded(tmp_path, change, message):
    shapes = {name: shape for name, shape in {**SINGLE, **change}.items() if shape is not None}
    path, layout = write_zeros(tmp_path / "model.safetensors", shapes), write_layout(tmp_path / "layout")
    with pytest.raises(InputError, match=rf"prior\.model=.*model\.safetensors: .*{message}"):
        locate("sd15", str(path), layout=str(layout))


@pytest.mark.parametrize("content", ["", "{", "[4]"])
def test_a_broken_configuration_beside_a_single_file_is_refused(tmp_path, content):
    path, layout = write_zeros(tmp_path / "model.safetensors", SINGLE), write_layout(tmp_path / "layout")
    (layout / "unet/config.json").write_text(content)
    with pytest.raises(InputError, match=r"prior\.layout: .*unet.config\.json cannot be read"):
        locate("sd15", str(path), layout=str(layout))


def test_the_configurations_say_what_a_model_predicts(tmp_path):
    path = write_layout(tmp_path) / "scheduler/scheduler_config.json"
    path.write_text("{}")
    assert prediction_type(tmp_path) == "epsilon"
    path.write_text('{"prediction_type": "v_prediction"}')
    assert prediction_type(tmp_path) == "v_prediction"
    path.write_text("")
    with pytest.raises(InputError, match=r"scheduler_config\.json cannot be read"):
        prediction_type(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no header at all", (4).to_bytes(8, "little") + b"[1] "])
def test_a_broken_single_file_is_refused(tmp_path, content):
    path, layout = tmp_path / "model.safetensors", write_layout(tmp_path / "layout")
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        locate("sd15", str(path), layout=str(layout))


def test_pickled_single_files_are_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.ckpt: not a \.safetensors file"):
        locate("sd15", str(path))


def test_a_layout_is_for_single_files_only(tmp_path):
    folder = write_files(tmp_path / "model")
    with pytest.raises(InputError, match=r"prior\.layout=somewhere: only for a single file"):
        locate("sd21", str(folder), layout="somewhere")


def test_a_missing_single_file_is_told_before_its_layout(tmp_path):
    layout = write_layout(tmp_path / "layout")
    with pytest.raises(InputError, match=r"^prior\.model=.*none\.safetensors: no such file"):
        locate("sd21", str(tmp_path / "none.safetensors"), layout=str(layout))


def test_another_autoencoder_comes_from_its_own_place(tmp_path, monkeypatch, no_hub_cache):
    folder = write_files(tmp_path / "model")
    tiny = write_files(tmp_path / "tiny", ["config.json", "diffusion_pytorch_model.safetensors"])
    source = locate("sd21", str(folder), vae=str(tiny))
    assert source.vae == Location(f"prior.vae={tiny}", tiny, (), AUTOENCODER)
    weights = fetch(source).weights()
    assert tiny / "diffusion_pytorch_model.safetensors" in weights
    assert folder / "vae/diffusion_pytorch_model.safetensors" not in weights and len(weights) == 3

    hub = Hub(monkeypatch, {"some/tiny": ["config.json", "diffusion_pytorch_model.safetensors", "x.bin"]}, tmp_path)
    remote = locate("sd21", str(folder), vae="some/tiny")
    assert remote.missing == (Location("prior.vae=some/tiny", None, ("some/tiny",), AUTOENCODER),)
    assert fetch(remote).vae == tmp_path / "some/tiny"
    assert hub.patterns == {"some/tiny": ["config.json", "diffusion_pytorch_model.safetensors"]}


def test_half_precision_weights_count_only_where_there_are_no_others(tmp_path):
    folder = write_files(tmp_path, [*FILES, "unet/diffusion_pytorch_model.fp16.safetensors"])
    assert [path.parent.name for path in ModelFiles(folder).weights()] == ["unet", "vae", "text_encoder"]
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert ModelFiles(folder).weights()[0].name == "diffusion_pytorch_model.fp16.safetensors"


def test_an_incomplete_autoencoder_names_the_missing_file(tmp_path):
    write_files(tmp_path, ["config.json"])
    with pytest.raises(InputError, match=r"prior\.vae=.* lacks \*\.safetensors; an autoencoder needs config\.json"):
        locate("shapes", vae=str(tmp_path))
