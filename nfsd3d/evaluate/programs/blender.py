"""Blender, as the Python package ``bpy`` in an environment of its own."""

import json
from pathlib import Path

from nfsd3d.errors import InputError
from nfsd3d.evaluate.programs.run import run
from nfsd3d.evaluate.programs.stage import FIELD_OF_VIEW_DEG, PLACE, SIZE

FORMATS = ("glb", "obj", "ply", "stl", "usdz")
"""What Blender 5.0 imports."""

# Emission in place of a lit material shows colours as they are. Where a file brings vertex colours and no material, one
# that shows them is made, and "material" says that there was none.
_SCRIPT = """
import json, math, sys
import bpy
from mathutils import Vector

path, output, size, field_of_view, place = json.loads(sys.argv[1])
suffix = path.rsplit(".", 1)[1]
bpy.ops.wm.read_factory_settings(use_empty=True)
importers = {"glb": bpy.ops.import_scene.gltf, "obj": bpy.ops.wm.obj_import, "ply": bpy.ops.wm.ply_import,
             "stl": bpy.ops.wm.stl_import, "usdz": bpy.ops.wm.usd_import}
importers[suffix](filepath=path)
scene = bpy.context.scene
bpy.context.view_layer.update()
meshes = [o for o in bpy.data.objects if o.type == "MESH"]
points = [o.matrix_world @ v.co for o in meshes for v in o.data.vertices]
low = Vector([min(p[i] for p in points) for i in range(3)])
high = Vector([max(p[i] for p in points) for i in range(3)])
side, middle = max(high - low), (low + high) / 2
had_material = all(o.data.materials and o.data.materials[0] for o in meshes)
attributes = sorted({a.name for o in meshes for a in o.data.color_attributes})

def emit(material, source):
    nodes, links = material.node_tree.nodes, material.node_tree.links
    shader = nodes.new("ShaderNodeEmission")
    if hasattr(source, "is_output"):
        links.new(source, shader.inputs["Color"])
    else:
        shader.inputs["Color"].default_value = source
    links.new(shader.outputs[0], next(n for n in nodes if n.type == "OUTPUT_MATERIAL").inputs["Surface"])

for o in meshes:
    if not o.data.materials or not o.data.materials[0]:
        material = bpy.data.materials.new("colors")
        material.use_nodes = True
        node = material.node_tree.nodes.new("ShaderNodeAttribute")
        node.attribute_name = attributes[0] if attributes else ""
        emit(material, node.outputs["Color"] if attributes else (0.8, 0.8, 0.8, 1))
        o.data.materials.clear()
        o.data.materials.append(material)
        continue
    for material in o.data.materials:
        principled = next((n for n in material.node_tree.nodes if n.type == "BSDF_PRINCIPLED"), None)
        if principled is None:
            continue
        base = principled.inputs["Base Color"]
        emit(material, base.links[0].from_socket if base.links else tuple(base.default_value))

left, up, front = place
camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
scene.collection.objects.link(camera)
scene.camera = camera
camera.data.angle = math.radians(field_of_view)
camera.data.clip_start, camera.data.clip_end = side / 100, side * 100
camera.location = middle + side * Vector((left, -front, up))  # the stage's front is Blender's -y
camera.rotation_euler = (math.atan2(math.hypot(left, front), up), 0, math.atan2(left, front))
scene.render.engine = "CYCLES"
scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 16, False
scene.cycles.pixel_filter_type = "BOX"
scene.render.film_transparent = True
scene.view_settings.view_transform = "Standard"
scene.render.resolution_x = scene.render.resolution_y = size
scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
scene.render.filepath = output
bpy.ops.render.render(write_still=True)
size_there = list(high - low)
print("RESULT " + json.dumps({
    "program": "Blender " + bpy.app.version_string, "size": size_there, "material": had_material,
    "attributes": attributes, "triangles": sum(len(o.data.polygons) for o in meshes),
    "textures": [f"{i.size[0]}x{i.size[1]}" for i in bpy.data.images if i.size[0]],
}))
"""


def open_in_blender(path: Path, picture: Path, python: Path) -> dict[str, object]:
    """Opens a mesh file in Blender and writes ``picture``, unlit, from the stage's camera (see :mod:`.stage`).

    ``python`` is an interpreter with the package ``bpy``. Returns "program", "size" (of the bounding box, in Blender's
    units and axes), "material" (whether the file brought one), "attributes" (vertex colours), "triangles" and
    "textures".

    Raises:
        InputError: there is no ``bpy``, or Blender cannot open the file.
    """
    arguments = json.dumps([str(path.resolve()), str(picture.resolve()), SIZE, FIELD_OF_VIEW_DEG, PLACE])
    printed = run([python, "-c", _SCRIPT, arguments])
    line = next((line for line in printed.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise InputError(f"{python}: said nothing of the file; is it a Python with bpy?")
    found: dict[str, object] = json.loads(line.removeprefix("RESULT "))
    return found


def axis_in_blender(axis: str) -> str:
    """The axis of Blender, whose z is up and whose front is -y, for an axis of the stage such as "+y"."""
    sign, name = axis[0], axis[1]
    other = {"+": "-", "-": "+"}[sign]
    return {"x": f"{sign}x", "y": f"{sign}z", "z": f"{other}y"}[name]
