"""USDZ: USD's package for viewers on phones and for Blender, with texture, unit and upward axis.

Written by Pixar's usd-core. A new stage has an upward axis and a unit only as fallbacks, so both are authored.
"""

import tempfile
from pathlib import Path

import numpy as np
from pxr import Gf, Kind, Sdf, Usd, UsdGeom, UsdShade, UsdUtils, Vt

from nfsd3d.errors import RunFailed
from nfsd3d.export.formats.base import Extras, Files, facts_of, png_bytes
from nfsd3d.export.formats.placement import METRES, Placed
from nfsd3d.generators.mesh.surface import NormalMap, srgb_to_linear

_ROOT = "/model"


def usdz_files(placed: Placed, stem: str, extras: Extras) -> Files:
    """A USDZ of one mesh with its texture, or with vertex colours; ``extras`` are in the layer's custom data.

    Raises:
        RunFailed: the package could not be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.usdc"
        stage = Usd.Stage.CreateNew(str(path))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y if placed.up == "y" else UsdGeom.Tokens.z)
        UsdGeom.SetStageMetersPerUnit(stage, METRES[placed.unit])
        stage.GetRootLayer().customLayerData = facts_of(placed, extras)
        root = UsdGeom.Xform.Define(stage, _ROOT)
        Usd.ModelAPI(root).SetKind(Kind.Tokens.component)
        stage.SetDefaultPrim(root.GetPrim())
        mesh = _mesh(stage, placed)
        material = _material(stage, placed, Path(folder))
        UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
        stage.GetRootLayer().Save()
        package = Path(folder) / "package.usdz"
        if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(path)), str(package)):
            raise RunFailed("usd-core could not make the USDZ package")
        return {f"{stem}.usdz": package.read_bytes()}


def _mesh(stage: Usd.Stage, placed: Placed) -> UsdGeom.Mesh:
    mesh, surface = UsdGeom.Mesh.Define(stage, f"{_ROOT}/mesh"), placed.mesh
    points = placed.turned(surface.vertices).astype(np.float32)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(points)))
    mesh.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(0), points.max(0)])))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(surface.faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(surface.faces.reshape(-1).astype(np.int32)))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    normals = np.ascontiguousarray(placed.turned(surface.normals), dtype=np.float32)
    mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(normals))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    values = UsdGeom.PrimvarsAPI(mesh)
    if surface.texture is None:
        light = srgb_to_linear(surface.colors.astype(np.float64)).astype(np.float32)
        colors = values.CreatePrimvar("displayColor", Sdf.ValueTypeNames.Color3fArray, UsdGeom.Tokens.vertex)
        colors.Set(Vt.Vec3fArray.FromNumpy(light))
    else:
        uv = (surface.texture.uv * [1, -1] + [0, 1]).astype(np.float32)  # USD's row 0 is at the bottom
        st = values.CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying)
        st.Set(Vt.Vec2fArray.FromNumpy(uv))
        st.SetIndices(Vt.IntArray.FromNumpy(surface.texture.faces.reshape(-1).astype(np.int32)))
    return mesh


def _material(stage: Usd.Stage, placed: Placed, folder: Path) -> UsdShade.Material:
    """A matt material; without a texture it reads the vertex colours."""
    material = UsdShade.Material.Define(stage, f"{_ROOT}/material")
    surface = UsdShade.Shader.Define(stage, f"{_ROOT}/material/surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(1.0)
    color = surface.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
    reader = UsdShade.Shader.Define(stage, f"{_ROOT}/material/reader")
    if placed.mesh.texture is None:
        reader.CreateIdAttr("UsdPrimvarReader_float3")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("displayColor")
        reader.CreateInput("fallback", Sdf.ValueTypeNames.Float3).Set(Gf.Vec3f(0.5))
        color.ConnectToSource(reader.CreateOutput("result", Sdf.ValueTypeNames.Float3))
    else:
        (folder / "albedo.png").write_bytes(png_bytes(placed.mesh.texture.image))
        reader.CreateIdAttr("UsdPrimvarReader_float2")
        reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
        texture = UsdShade.Shader.Define(stage, f"{_ROOT}/material/albedo")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath("albedo.png"))
        texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("sRGB")
        for side in ("wrapS", "wrapT"):
            texture.CreateInput(side, Sdf.ValueTypeNames.Token).Set("clamp")
        place = reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)
        texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(place)
        color.ConnectToSource(texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3))
        if placed.mesh.texture.normal_map is not None:
            normal = surface.CreateInput("normal", Sdf.ValueTypeNames.Normal3f)
            normal.ConnectToSource(_normals(stage, placed.mesh.texture.normal_map, folder, place))
    shown = surface.CreateOutput("surface", Sdf.ValueTypeNames.Token)
    material.CreateSurfaceOutput().ConnectToSource(shown)
    return material


def _normals(stage: Usd.Stage, normal_map: NormalMap, folder: Path, place: UsdShade.Output) -> UsdShade.Output:
    """The directions of a normal map, of [-1,1], read at ``place``."""
    (folder / "normals.png").write_bytes(png_bytes(normal_map.image))
    texture = UsdShade.Shader.Define(stage, f"{_ROOT}/material/normals")
    texture.CreateIdAttr("UsdUVTexture")
    texture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath("normals.png"))
    texture.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set("raw")
    texture.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
    texture.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
    for side in ("wrapS", "wrapT"):
        texture.CreateInput(side, Sdf.ValueTypeNames.Token).Set("clamp")
    texture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(place)
    return texture.CreateOutput("rgb", Sdf.ValueTypeNames.Float3)
