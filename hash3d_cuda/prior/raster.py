"""Offscreen renderer for training pictures: OpenGL through EGL, so neither a display nor a GPU is needed.

Light is fixed in the world (sky above, ground below, a key and a fill light), so that all views of an object
agree on its shading. Background white, no shadows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from hash3d_cuda.cameras import FOV_DEGREES, camera_to_world
from hash3d_cuda.prior.furniture import Part

NEAR, FAR = 0.5, 5.0

VERTEX_SHADER = """
#version 330
uniform mat4 view_projection;
in vec3 position; in vec3 normal; in vec2 uv; in vec4 colour;
out vec3 world; out vec3 world_normal; out vec2 texture_uv; out vec4 base;
void main() {
    world = position; world_normal = normal; texture_uv = uv; base = colour;
    gl_Position = view_projection * vec4(position, 1.0);
}
"""

FRAGMENT_SHADER = """
#version 330
uniform vec3 eye; uniform bool textured; uniform sampler2D image;
in vec3 world; in vec3 world_normal; in vec2 texture_uv; in vec4 base;
out vec4 shaded;
const vec3 key_direction = normalize(vec3(0.65, 0.45, 0.75));
const vec3 fill_direction = normalize(vec3(-0.5, -0.85, 0.35));
void main() {
    vec4 albedo = base;
    if (textured) {
        vec4 texel = texture(image, texture_uv);
        if (texel.a < 0.5) discard;
        albedo.rgb *= texel.rgb;
    }
    vec3 n = normalize(world_normal);
    if (dot(n, eye - world) < 0.0) n = -n;  // two-sided: catalogue models are not always closed
    vec3 light = mix(vec3(0.38, 0.37, 0.36), vec3(0.56, 0.57, 0.59), 0.5 + 0.5 * n.z);
    light += 0.50 * max(dot(n, key_direction), 0.0) + 0.18 * max(dot(n, fill_direction), 0.0);
    vec3 lit = (0.05 + 0.95 * albedo.rgb) * light;  // the offset keeps the shape of black objects visible
    shaded = vec4(pow(min(lit, 1.0), vec3(0.85)), albedo.a);
}
"""


def view_projection(elevation: float, azimuth: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Clip matrix float32 [4,4] (column vectors, OpenGL) and camera position [3], as in ``camera_rays``."""
    angles_radius = [torch.tensor([value], dtype=torch.float64) for value in (elevation, azimuth, radius)]
    pose = camera_to_world(*angles_radius)[0].numpy()
    rotation, eye = pose[:, :3], pose[:, 3]
    view = np.eye(4)
    view[:3, :3], view[:3, 3] = rotation.T, -rotation.T @ eye
    focal = 1 / math.tan(math.radians(FOV_DEGREES) / 2)
    projection = np.diag([focal, focal, (FAR + NEAR) / (NEAR - FAR), 0.0])
    projection[2, 3], projection[3, 2] = 2 * FAR * NEAR / (NEAR - FAR), -1.0
    return (projection @ view).astype(np.float32), eye.astype(np.float32)


def area_downsample(image: np.ndarray, size: int) -> np.ndarray:
    """Mean over square blocks: [S,S,C] to float32 [size,size,C], S a multiple of ``size``."""
    factor = image.shape[0] // size
    if factor * size != image.shape[0]:
        raise ValueError(
            f"size: {size} does not divide the rendered {image.shape[0]} pixels; render at a multiple of it"
        )
    return image.reshape(size, factor, size, factor, -1).mean((1, 3), dtype=np.float32)


class Renderer(AbstractContextManager):
    """One OpenGL context and framebuffer of ``render_size`` squared pixels; a context manager."""

    def __init__(self, render_size: int = 256) -> None:
        import moderngl

        self.render_size = render_size
        try:
            self.context = moderngl.create_standalone_context(backend="egl")
        except Exception as error:
            raise RuntimeError(
                f"renderer: no OpenGL context through EGL ({error}); on Debian install libegl1 and libgl1-mesa-dri"
            ) from error
        self.program = self.context.program(vertex_shader=VERTEX_SHADER, fragment_shader=FRAGMENT_SHADER)
        self.framebuffer = self.context.simple_framebuffer((render_size, render_size), components=4)
        self._drawables: list[tuple[Any, Any, bool]] = []
        self._owned: list[Any] = []

    def __exit__(self, *_: object) -> None:
        self._release_parts()
        self.context.release()

    def load(self, parts: list[Part]) -> None:
        """Upload an object; it replaces the one before."""
        self._release_parts()
        for part in parts:
            vertices = np.concatenate([part.positions, part.normals, part.uv, part.colours], 1).astype(np.float32)
            buffer, index = self.context.buffer(vertices.tobytes()), self.context.buffer(part.faces.tobytes())
            layout = [(buffer, "3f 3f 2f 4f", "position", "normal", "uv", "colour")]
            array = self.context.vertex_array(self.program, layout, index)
            texture = None if part.texture is None else self._upload(part.texture)
            self._drawables.append((array, texture, part.translucent))
            self._owned += [array, buffer, index] + ([texture] if texture else [])

    def render(self, elevation: float, azimuth: float, radius: float) -> np.ndarray:
        """The loaded object as uint8 [S,S,4] at the render size: colour over white, and coverage."""
        gl, matrix_eye = self.context, view_projection(elevation, azimuth, radius)
        self.framebuffer.use()
        self.framebuffer.clear(1.0, 1.0, 1.0, 0.0)
        gl.enable(gl.DEPTH_TEST | gl.BLEND)
        gl.blend_func = gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA
        self.program["view_projection"].write(matrix_eye[0].T.tobytes())
        self.program["eye"].write(matrix_eye[1].tobytes())
        for array, texture, translucent in self._drawables:
            self.framebuffer.depth_mask = not translucent
            self.program["textured"].value = texture is not None
            if texture is not None:
                texture.use(0)
            array.render()
        self.framebuffer.depth_mask = True
        pixels = np.frombuffer(self.framebuffer.read(components=4), np.uint8)
        return pixels.reshape(self.render_size, self.render_size, 4)[::-1]

    def _upload(self, image: np.ndarray) -> Any:
        height, width = image.shape[:2]
        texture = self.context.texture((width, height), 4, np.ascontiguousarray(image[::-1]).tobytes())
        texture.build_mipmaps()
        texture.filter = self.context.LINEAR_MIPMAP_LINEAR, self.context.LINEAR
        return texture

    def _release_parts(self) -> None:
        for resource in self._owned:
            resource.release()
        self._drawables, self._owned = [], []
