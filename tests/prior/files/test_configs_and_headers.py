"""A safetensors header is trusted only where it describes the file's bytes; a configuration only if it is an object."""

import json

import pytest
from tiny_models import write_zeros

from nfsd3d.errors import InputError
from nfsd3d.prior.files.configs_and_headers import named_errors, optional_object, read_object, tensor_shapes

SHAPES = {"a": [3, 2], "b": [], "c": [0], "d": [5]}


def test_shapes_are_read_from_the_header_alone(tmp_path):
    import torch
    from safetensors.torch import save_file

    assert tensor_shapes(write_zeros(tmp_path / "x", SHAPES), "x") == SHAPES
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn)
    save_file({str(kind): torch.zeros(2, 3, dtype=kind) for kind in kinds}, tmp_path / "y", {"format": "pt"})
    assert tensor_shapes(tmp_path / "y", "y") == {str(kind): [2, 3] for kind in kinds}


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": [-6, 0]},
        {"data_offsets": [6, 0]},
        {"data_offsets": [1, 7]},
        {"data_offsets": [0, 5]},
        {"data_offsets": [0, 7]},
        {"data_offsets": [0, 10**30]},
        {"data_offsets": ["0", "6"]},
        {"data_offsets": [0.5, 6.5]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 6, 12]},
        {"data_offsets": None},
        {"shape": [-3, -2]},
        {"shape": ["3", 2]},
        {"shape": [1.5, 4]},
        {"shape": [10**30]},
        {"shape": 6},
        {"dtype": "F16"},
        {"dtype": "X"},
        {"dtype": 8},
    ],
)
def test_a_tensor_outside_its_place_in_the_file_is_refused(tmp_path, entry):
    file = write_zeros(tmp_path / "x", SHAPES, **entry)
    with pytest.raises(InputError, match=r"^x: cannot be read as safetensors \(damaged header: .+\); replace it with"):
        tensor_shapes(file, "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "cut off: it has"),
        (lambda data: data + b"x", "too long: it has"),
        (lambda data: data[:40], "damaged header"),
        (lambda data: (10**6).to_bytes(8, "little") + data[8:], "damaged header: no safetensors header"),
        (lambda data: b"\xff" * 8 + data[8:], "damaged header: no safetensors header"),
        (lambda data: data.replace(b'{"format": "pt"}', b'["format", "pt"]'), "damaged header"),
        (lambda data: data.replace(b'{"format": "pt"}', b'{"format": 1234}'), "damaged header: __metadata__"),
    ],
)
def test_a_file_of_another_length_than_its_header_says_is_refused(tmp_path, change, said):
    file = write_zeros(tmp_path / "x", SHAPES)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=rf"^x: cannot be read as safetensors \({said}"):
        tensor_shapes(file, "x")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000])
def test_a_configuration_that_is_no_object_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"^prior\.vae: .*config\.json cannot be read \([^\n]+\); replace it with an int"
    ):
        read_object(path, "prior.vae")


def test_a_configuration_may_be_missing_where_it_is_optional(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert optional_object(tmp_path / "none") == optional_object(tmp_path / "loop") == {}
    (tmp_path / "given").write_text(json.dumps({"a": 1}))
    assert optional_object(tmp_path / "given") == {"a": 1}


def test_errors_of_any_library_become_one_line():
    class Strange(Exception):
        """Of no common kind, as in tokenizers and huggingface_hub."""

    for error, said in (
        (Strange("first\nsecond"), "first"),
        (Strange(), "Strange"),
        (ZeroDivisionError("zero"), "zero"),
    ):
        with pytest.raises(InputError, match=rf"^x: y cannot be loaded \({said}\); replace"), named_errors("x: y"):
            raise error
