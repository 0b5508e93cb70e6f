// Shows the page's binary glTF (one mesh: positions, normals, and a texture or vertex colours) in a canvas; drag or
// arrow keys to orbit, wheel, two fingers or + and - to zoom. Plain WebGL 2, nothing is loaded from anywhere.
"use strict";

function parseGlb(bytes) {
  const view = new DataView(bytes.buffer);
  const jsonLength = view.getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + jsonLength)));
  const bodyStart = 20 + jsonLength + 8;
  const arrays = { 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
  const sizes = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };
  const read = (index) => {
    if (index === undefined) return null;
    const accessor = gltf.accessors[index];
    const start = bodyStart + gltf.bufferViews[accessor.bufferView].byteOffset;
    return new arrays[accessor.componentType](bytes.buffer, start, accessor.count * sizes[accessor.type]);
  };
  const primitive = gltf.meshes[0].primitives[0];
  let picture = null;
  if (gltf.images) {
    const span = gltf.bufferViews[gltf.images[0].bufferView];
    picture = bytes.subarray(bodyStart + span.byteOffset, bodyStart + span.byteOffset + span.byteLength);
  }
  return {
    positions: read(primitive.attributes.POSITION),
    normals: read(primitive.attributes.NORMAL),
    colors: read(primitive.attributes.COLOR_0),
    places: read(primitive.attributes.TEXCOORD_0),
    picture,
    indices: read(primitive.indices),
  };
}

const VERTEX_SHADER = `#version 300 es
  in vec3 position; in vec3 normal; in vec4 color; in vec2 place;
  uniform mat4 projection; uniform mat4 view;
  out vec3 eyeNormal; out vec3 vertexColor; out vec2 texturePlace;
  void main() {
    vec4 eye = view * vec4(position, 1.0);
    eyeNormal = mat3(view) * normal;
    vertexColor = color.rgb;
    texturePlace = place;
    gl_Position = projection * eye;
  }`;

const FRAGMENT_SHADER = `#version 300 es
  precision highp float;
  in vec3 eyeNormal; in vec3 vertexColor; in vec2 texturePlace;
  uniform sampler2D picture;
  uniform bool textured; uniform bool showNormals;
  out vec4 pixel;
  vec3 encode(vec3 c) { return mix(c * 12.92, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c)); }
  void main() {
    vec3 n = normalize(eyeNormal);
    if (showNormals) { pixel = vec4(n * 0.5 + 0.5, 1.0); return; }
    vec3 albedo = textured ? texture(picture, texturePlace).rgb : vertexColor;
    float key = max(dot(n, normalize(vec3(0.4, 0.6, 0.8))), 0.0);
    float fill = 0.5 + 0.5 * n.y;
    pixel = vec4(encode(min(albedo * (0.35 + 0.25 * fill + 0.55 * key), 1.0)), 1.0);
  }`;

function compile(gl, type, source) {
  const shader = gl.createShader(type);
  gl.shaderSource(shader, source);
  gl.compileShader(shader);
  if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
  return shader;
}

// The picture's sRGB values become linear light when the texture is read, and are filtered as such.
function uploadPicture(gl, image) {
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.SRGB8_ALPHA8, gl.RGBA, gl.UNSIGNED_BYTE, image);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
}

function startViewer(canvas, note, model, image) {
  const gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) {
    note.textContent = "This browser offers no WebGL 2: open mesh/model.glb in another viewer.";
    return;
  }
  const program = gl.createProgram();
  gl.attachShader(program, compile(gl, gl.VERTEX_SHADER, VERTEX_SHADER));
  gl.attachShader(program, compile(gl, gl.FRAGMENT_SHADER, FRAGMENT_SHADER));
  gl.linkProgram(program);
  gl.useProgram(program);

  // Files have 16-bit numbers or larger ones.
  const kind = (data) => {
    return data instanceof Uint16Array ? gl.UNSIGNED_SHORT : data instanceof Uint32Array ? gl.UNSIGNED_INT : gl.FLOAT;
  };
  const attribute = (name, data, size) => {
    if (!data) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    const location = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, kind(data), kind(data) !== gl.FLOAT, 0, 0);
  };
  attribute("position", model.positions, 3);
  attribute("normal", model.normals, 3);
  attribute("color", model.colors, 4);
  attribute("place", model.places, 2);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, model.indices, gl.STATIC_DRAW);
  if (image) uploadPicture(gl, image);

  const uniform = (name) => gl.getUniformLocation(program, name);
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  model.positions.forEach((value, i) => {
    low[i % 3] = Math.min(low[i % 3], value);
    high[i % 3] = Math.max(high[i % 3], value);
  });
  const center = low.map((value, i) => (value + high[i]) / 2);
  const size = Math.hypot(...low.map((value, i) => high[i] - value)) / 2;
  const camera = { yaw: 0.6, pitch: 0.3, distance: 3.2 * size, spinning: true };
  let showNormals = false;
  let last = null;

  // The camera circles the model's centre: yaw about +Y counted from the front (+Z), then pitch. Column-major matrices.
  function viewMatrix() {
    const [cy, sy, cp, sp] = [Math.cos(camera.yaw), Math.sin(camera.yaw), Math.cos(camera.pitch), Math.sin(camera.pitch)];
    const rows = [[cy, 0, -sy], [-sy * sp, cp, -cy * sp], [sy * cp, sp, cy * cp]];
    const shift = rows.map((row) => -row.reduce((sum, value, i) => sum + value * center[i], 0));
    shift[2] -= camera.distance;
    return [0, 1, 2].flatMap((column) => [...rows.map((row) => row[column]), 0]).concat([...shift, 1]);
  }

  function draw() {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    gl.viewport(0, 0, canvas.width, canvas.height);
    const [near, far, focal] = [0.05 * size, 20 * size, 1 / Math.tan(0.35)];
    const projection = [
      (focal * canvas.height) / canvas.width, 0, 0, 0, 0, focal, 0, 0,
      0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0,
    ];
    gl.uniformMatrix4fv(uniform("projection"), false, projection);
    gl.uniformMatrix4fv(uniform("view"), false, viewMatrix());
    gl.uniform1i(uniform("textured"), image ? 1 : 0);
    gl.uniform1i(uniform("showNormals"), showNormals ? 1 : 0);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.drawElements(gl.TRIANGLES, model.indices.length, kind(model.indices), 0);
  }

  function zoom(factor) {
    camera.distance = Math.min(Math.max(camera.distance * factor, 1.2 * size), 10 * size);
    draw();
  }

  function turn(yaw, pitch) {
    camera.spinning = false;
    camera.yaw += yaw;
    camera.pitch = Math.min(Math.max(camera.pitch + pitch, -1.55), 1.55);
    draw();
  }

  function switchNormals() {
    showNormals = !showNormals;
    draw();
  }

  function switchSpinning() {
    camera.spinning = !camera.spinning;
    last = null;
    requestAnimationFrame(spin);
  }

  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    camera.spinning = false;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    if (pointers.size === 2) {
      const old = spread();
      pointers.set(event.pointerId, now);
      zoom(old / Math.max(spread(), 1));
      return;
    }
    pointers.set(event.pointerId, now);
    turn(-(now.x - before.x) * 0.008, (now.y - before.y) * 0.008);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY * 0.001));
  }, { passive: false });
  canvas.addEventListener("dblclick", switchNormals);
  canvas.addEventListener("keydown", (event) => {
    const keys = {
      ArrowLeft: () => turn(-0.1, 0), ArrowRight: () => turn(0.1, 0),
      ArrowUp: () => turn(0, 0.1), ArrowDown: () => turn(0, -0.1),
      "+": () => zoom(0.9), "=": () => zoom(0.9), "-": () => zoom(1 / 0.9), n: switchNormals, " ": switchSpinning,
    };
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    act();
  });
  window.addEventListener("resize", draw);

  function spin(time) {
    if (!camera.spinning) return;
    if (last !== null) camera.yaw += (time - last) * 0.0004;
    last = time;
    draw();
    requestAnimationFrame(spin);
  }
  draw();
  requestAnimationFrame(spin);
}

async function showModel(embedded, canvas, note) {
  const bytes = Uint8Array.from(atob(embedded.textContent.trim()), (letter) => letter.charCodeAt(0));
  const model = parseGlb(bytes);
  let image = null;
  if (model.picture) {
    const asItIs = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
    image = await createImageBitmap(new Blob([model.picture], { type: "image/png" }), asItIs);
  }
  startViewer(canvas, note, model, image);
}

const embedded = document.getElementById("model");
if (embedded) {
  const note = document.getElementById("viewer-note");
  showModel(embedded, document.getElementById("viewer"), note).catch((error) => {
    note.textContent = `The mesh cannot be shown here (${error.message}): open mesh/model.glb in another viewer.`;
  });
}
