"""Mesh extraction: from a field to a coloured mesh."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_settings import EXPORT

from nfsd3d.errors import InputError
from nfsd3d.export import extract as extract_module
from nfsd3d.export.extract import extract_mesh
from nfsd3d.export.formats.table import write_meshes
from nfsd3d.export.texture.rasterize import colors_at
from nfsd3d.export.texture.unwrap import UnwrapFailed

BALL_VOLUME = 4 / 3 * math.pi * 0.5**3


def settings(**changes):
    return replace(EXPORT, **changes)


@pytest.mark.parametrize(("resolution", "max_faces"), [(80, 10**6), (130, 3000)])
def test_a_ball_becomes_a_closed_ball(ball, resolution, max_faces):
    extracted = extract_mesh(ball, 1.0, settings(resolution=resolution, max_faces=max_faces))
    mesh = extracted.mesh.to_trimesh()
    assert len(mesh.faces) <= max_faces
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(BALL_VOLUME, rel=0.02)  # positive: wound outward
    np.testing.assert_allclose(mesh.centroid, 0, atol=0.005)
    radial = extracted.mesh.vertices / np.linalg.norm(extracted.mesh.vertices, axis=1, keepdims=True)
    assert ((extracted.mesh.normals * radial).sum(1) > 0.97).all()
    np.testing.assert_allclose(extracted.mesh.colors, extracted.mesh.vertices / 2 + 0.5, atol=0.03)


@pytest.mark.parametrize(("resolution", "expected"), [(16, 16), (128, 128), (130, 130), (200, 200), (257, 258)])
def test_the_resolution_is_at_least_the_setting(ball, resolution, expected, monkeypatch):
    """Cells are halved, cut in three, ... from at most 128 per axis."""
    made = []

    def watched(level_set, grid, split):
        made.append((grid.values.shape[0] - 1) * split)
        raise InputError("seen enough")

    monkeypatch.setattr(extract_module, "extract_surface", watched)
    with pytest.raises(InputError):
        extract_mesh(ball, 1.0, settings(resolution=resolution, threshold=1.0))
    assert made == [expected]


def test_the_given_threshold_is_the_level(ball):
    soft = type(ball)(steepness=100.0)
    extracted = extract_mesh(soft, 1.0, settings(threshold=20.0))
    assert extracted.level == 20.0
    # softplus(100 (.5 - r)) = 20 at r = .5 - ln(e^20 - 1) / 100
    expected = 0.5 - math.log(math.expm1(20.0)) / 100
    np.testing.assert_allclose(np.linalg.norm(extracted.mesh.vertices, axis=1), expected, atol=0.002)


def test_a_texture_shows_the_colours_of_the_field(ball):
    extracted = extract_mesh(ball, 1.0, settings(max_faces=2000, texture_size=256))
    mesh = extracted.mesh
    assert extracted.untextured is None and extracted.facts["texture_size"] == 256
    assert mesh.texture is not None and mesh.texture.image.shape == (256, 256, 3)
    np.testing.assert_array_equal(mesh.texture.source[mesh.texture.faces], mesh.faces)
    rng = np.random.default_rng(0)
    face = rng.integers(len(mesh.faces), size=5000)
    weights = rng.dirichlet((1, 1, 1), size=5000)
    place = np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[face]])
    error = colors_at(mesh, face, weights) - (place / 2 + 0.5)
    assert np.abs(error).max() < 0.05 and np.sqrt((error**2).mean()) < 0.01  # at the seams too


def test_a_failed_unwrapping_leaves_vertex_colours_and_a_reason(ball, monkeypatch):
    def fail(surface, size, timeout, on_wait):
        raise UnwrapFailed(f"unwrapping was not done after {timeout:g} s")

    monkeypatch.setattr(extract_module, "unwrap", fail)
    extracted = extract_mesh(ball, 1.0, settings(texture_size=256, unwrap_timeout=7.0))
    assert extracted.mesh.texture is None and len(extracted.mesh.colors) == len(extracted.mesh.vertices)
    assert "not done after 7 s" in extracted.untextured and "vertices" in extracted.untextured
    assert extracted.facts["texture_size"] is None and extracted.facts["untextured"] == extracted.untextured


def test_progress_is_reported_in_order(ball):
    told = []
    extract_mesh(ball, 1.0, settings(max_faces=2000, texture_size=64), on_progress=lambda *step: told.append(step))
    assert list(dict.fromkeys(stage for stage, _ in told)) == list(extract_module.STAGES)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


def test_levels_of_detail_are_coarser_meshes_with_textures_of_their_own(ball, tmp_path):
    told = []
    wanted = settings(max_faces=4000, texture_size=64, lods=[1000, 100])
    extracted = extract_mesh(ball, 1.0, wanted, on_progress=lambda *step: told.append(step))
    assert extracted.facts["lods"] == [len(level.faces) for level in extracted.lods]
    for most, level in zip((1000, 100), extracted.lods, strict=True):
        mesh = level.to_trimesh()
        assert 0.8 * most <= len(mesh.faces) <= most and mesh.is_watertight and level.texture.size == 64
        assert mesh.volume == pytest.approx(BALL_VOLUME, rel=0.02 if most == 1000 else 0.15)
        np.testing.assert_allclose(level.colors, level.vertices / 2 + 0.5, atol=0.05)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    paths = write_meshes(extracted.mesh, tmp_path / "mesh", ["glb", "stl"], {}, lods=extracted.lods)
    assert [path.name for path in paths] == [
        f"model{level}.{suffix}" for level in ("", "-lod1", "-lod2") for suffix in ("glb", "stl")
    ]


def test_an_exception_from_the_progress_callback_is_raised(ball):
    def interrupt(stage, done):
        if stage == "colours":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_mesh(ball, 1.0, settings(max_faces=2000, texture_size=64), on_progress=interrupt)


@pytest.mark.parametrize(
    ("density", "threshold", "words"),
    [
        (lambda p: torch.zeros(len(p)), "auto", "empty.*between 0 and 0"),
        (lambda p: torch.full((len(p),), 30.0), "auto", "full.*between 30 and 30"),
        (lambda p: 50.0 * (p.norm(dim=-1) < 0.5).float(), 60.0, "empty.*threshold 60.*between 0 and 50"),
        (lambda p: 10.0 + p[:, 0], 5.0, "full.*threshold 5 .*between 9 and 11"),
        (lambda p: p[:, 0] * math.nan, "auto", "not finite"),
    ],
)
def test_a_field_without_a_surface_is_an_error(ball, density, threshold, words):
    solid = type("Field", (), {"density": staticmethod(density), "albedo": ball.albedo})()
    with pytest.raises(InputError, match=words):
        extract_mesh(solid, 1.0, settings(resolution=32, threshold=threshold))
