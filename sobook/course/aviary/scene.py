"""Surroundings of the birds of the aviary: the drawing sheet, the background and the camera.

Pixels must not depend on the machine: all chance comes from `Random.random` and `randbytes`, whose
streams Python fixes; coordinates are rounded to whole pixels of the enlarged canvas before Pillow
sees them; and only its integer operations follow (filled polygons are the same since Pillow 11.2).
Points are complex numbers, x to the right and y downwards: to rotate is to multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sobook import files

TABLES = files.read_toml(Path(__file__).with_name("birds.toml"))
Color = tuple[int, int, int]
Points = list[complex]
BLACK: Color = (24, 20, 24)
WHITE: Color = (255, 255, 255)
ENLARGEMENT = 3  # pictures are drawn at three times their size, then reduced


@dataclass(frozen=True)
class Nuisance:
    """Variation among the images of one species. Raise `species.VERSION` after any change."""

    pose: float = 1.0  # movement of head, wing, tail and body; 0 is a stuffed bird
    tilt: float = 16.0  # degrees, either way
    scale: tuple[float, float] = (0.60, 0.94)  # fraction of the frame that the bird spans
    place: float = 0.10  # shift of the bird, fraction of the frame, either way
    light: float = 0.28  # brightness, down; half as much up
    cast: float = 0.12  # change of each color channel, either way
    blur: float = 0.9  # largest radius, pixels at size 96
    noise: int = 12  # largest amplitude, of 255
    occluded: float = 0.3  # fraction of the images with a twig or leaves in front


NUISANCE = Nuisance()
# What chance decides in a picture, in this order; none of it depends on the marks of the bird.
PARTS: tuple[str, ...] = ("pose", "scale", "tilt", "direction", "place", "background", "ground")
PARTS += ("occlusion", "blur", "light", "cast", "noise")


class Chance(Random):
    """All chance in one picture. `part` tells `microscope` what the next draws decide."""

    part = ""


def mix(a: Color, b: Color, part: float) -> Color:
    """Return `a` with a part of `b` in it, from 0 to 1."""
    return tuple(round(x + (y - x) * part) for x, y in zip(a, b, strict=True))


def pick(rng: Random, options):
    """Return one of the options (`Random.choice` may change between versions of Python)."""
    return options[int(rng.random() * len(options))]


def swing(rng: Random, amount: float) -> float:
    """Return a number between -amount and amount."""
    return (2 * rng.random() - 1) * amount


# --- shapes -------------------------------------------------------------------------------------


def turn(degrees: float) -> complex:
    """Return the factor that turns anticlockwise: skywards, for a bird that looks right."""
    angle = math.radians(degrees)
    return complex(math.cos(angle), -math.sin(angle))


_CIRCLE = [turn(15 * i) for i in range(24)]
_CATMULL_ROM = [
    (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (t**3 - t**2) / 2,
    )
    for t in (0.0, 0.25, 0.5, 0.75)
]


def smooth(points: Points) -> Points:
    """Return a closed smooth curve through the points."""
    n = len(points)
    return [
        a * points[i - 1] + b * points[i] + c * points[(i + 1) % n] + d * points[(i + 2) % n]
        for i in range(n)
        for a, b, c, d in _CATMULL_ROM
    ]


def ellipse(center: complex, rx: float, ry: float) -> Points:
    """Return the outline of an upright ellipse."""
    return [center + complex(rx * z.real, ry * z.imag) for z in _CIRCLE]


def bezier(a: complex, b: complex, c: complex, d: complex) -> Points:
    """Return nine points on a cubic Bézier curve."""
    steps = [(i / 8, 1 - i / 8) for i in range(9)]
    return [a * s**3 + 3 * b * s * s * t + 3 * c * s * t * t + d * t**3 for t, s in steps]


def limb(path: Points, widths: list[float]) -> Points:
    """Return the outline of a stroke along `path`, given its half width at each point."""
    left, right = [], []
    for i, (z, width) in enumerate(zip(path, widths, strict=True)):
        along = path[min(i + 1, len(path) - 1)] - path[max(i - 1, 0)]
        across = along / (abs(along) or 1) * 1j * width
        left.append(z + across)
        right.append(z - across)
    return left + right[::-1]


class Sheet:
    """An enlarged layer with its mask, and the way from bird to canvas coordinates."""

    def __init__(self, image: Image.Image, factor: complex, offset: complex, flip: bool) -> None:
        self.image, self.side, self.mask = image, image.width, Image.new("L", image.size)
        self.factor, self.offset, self.flip = factor, offset, flip
        self._brush, self._stencil = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)

    def layer(self, image: Image.Image | None = None) -> Sheet:
        """Return another sheet with the same coordinates, empty unless an image is given."""
        image = image or Image.new("RGB", self.image.size)
        return Sheet(image, self.factor, self.offset, self.flip)

    def place(self, points: Points) -> list[tuple[int, int]]:
        """Return whole canvas coordinates."""
        x, y, across = self.offset.real, self.offset.imag, -1 if self.flip else 1
        turned = [z * self.factor for z in points]
        return [(round(x + across * z.real), round(y + z.imag)) for z in turned]

    def shape(self, points: Points, color: Color) -> None:
        """Paint a polygon that belongs to the silhouette."""
        placed = self.place(points)
        self._brush.polygon(placed, fill=color)
        self._stencil.polygon(placed, fill=255)

    def mark(self, points: Points, color: Color) -> None:
        """Paint a polygon that shows only inside the silhouette."""
        self._brush.polygon(self.place(points), fill=color)

    def add(self, other: Sheet) -> None:
        """Lay another sheet, cut out along its silhouette, on this one."""
        box = other.mask.getbbox()  # None, for all of it, where nothing was painted
        cut = other.mask.crop(box)
        self.image.paste(other.image.crop(box), box, cut)
        self.mask.paste(255, box, cut)


# --- before and behind the bird -----------------------------------------------------------------

TINTS = ((240, 212, 190), (190, 210, 240), (208, 226, 180), (226, 202, 226), (244, 230, 180))
_FINE = 48  # side of the small canvas that becomes the background


def _background(rng: Random, side: int) -> Image.Image:
    """Soft: a few shapes on a small canvas, blurred and enlarged."""
    scenes = TABLES["scenes"]
    name, tint = pick(rng, tuple(scenes)), pick(rng, TINTS)
    first, second, third = (
        mix(mix(color, tint, 0.35 * rng.random()), BLACK, 0.14 * rng.random())
        for color in scenes[name]
    )
    scene = Image.new("RGB", (_FINE, _FINE), first)
    brush = ImageDraw.Draw(scene)
    if name in ("meadow", "water", "snow", "dusk"):
        brush.rectangle((0, round(_FINE * (0.45 + 0.4 * rng.random())), _FINE, _FINE), fill=second)
    for _ in range(8 + int(8 * rng.random())):
        x, y, r = _FINE * rng.random(), _FINE * rng.random(), 2 + 7 * rng.random()
        color = mix(second if rng.random() < 0.6 else third, first, 0.55 * rng.random())
        wide = 2.5 if name in ("sky", "water", "snow") else 1
        if name == "wood":
            brush.rectangle((round(x - r / 2), 0, round(x + r / 2), _FINE), fill=color)
        else:
            box = (x - r * wide, y - r / wide, x + r * wide, y + r / wide)
            brush.ellipse(tuple(round(v) for v in box), fill=color)
    scene = scene.filter(ImageFilter.BoxBlur(1.2))
    return scene.resize((side, side), Image.Resampling.BILINEAR)


def _draw_support(scene: Sheet, stance: str, ground: float, rng: Random) -> None:
    """Draw the perch: a branch or a grassy mound whose top is at `ground`."""
    if stance == "perch":
        bend, width = swing(rng, 30), 4 + 5 * rng.random()
        bark = mix((116, 86, 60), (156, 146, 130), rng.random())
        ends = complex(-260, ground + bend), complex(260, ground - bend)
        path = bezier(ends[0], complex(-80, ground + 2), complex(80, ground + 2), ends[1])
        shadow, light = ([z + 1j * k * width for z in path] for k in (0.6, 0.25))
        scene.mark(limb(shadow, [width] * 9), mix(bark, BLACK, 0.3))
        scene.mark(limb(light, [0.62 * width] * 9), bark)
        for _ in range(int(4 * rng.random())):
            _draw_leaf(scene, complex(swing(rng, 130), ground), 24, rng)
    elif stance == "ground":
        soil = mix((128, 146, 84), (192, 172, 130), rng.random())
        scene.mark(ellipse(complex(0, ground + 150), 300, 148), soil)
        for _ in range(12):
            foot = complex(swing(rng, 170), ground + 4 + 20 * rng.random())
            tip = foot + complex(swing(rng, 10), -14 - 14 * rng.random())
            scene.mark([foot - 2, tip, foot + 2], mix(soil, (60, 96, 48), 0.6))


def _draw_front(scene: Sheet, stance: str, water: float, rng: Chance) -> None:
    """Water around a swimmer and, now and then, a twig or leaves in front of the bird."""
    if stance == "swim":
        blue = mix((88, 144, 170), (126, 174, 166), rng.random())
        scene.mark(ellipse(complex(0, water + 300), 900, 300), blue)
        for i in range(6):
            middle = complex(swing(rng, 110), water + 4 + 11 * i)
            scene.mark(ellipse(middle, 34 + 20 * rng.random(), 2.2), mix(blue, WHITE, 0.35))
    rng.part = "occlusion"
    if rng.random() >= NUISANCE.occluded:
        return
    if rng.random() < 0.5:
        x, lean = swing(rng, 60), swing(rng, 80)
        a, b = complex(x - lean, -260), complex(x + lean, -60)
        path = bezier(a, b, complex(x - lean, 80), complex(x + lean, 260))
        scene.mark(limb(path, [2.6 + 0.3 * i for i in range(9)]), (104, 82, 60))
        _draw_leaf(scene, path[4], 34, rng)
    else:
        for _ in range(2):
            _draw_leaf(scene, complex(swing(rng, 90), swing(rng, 80)), 42, rng)


def _draw_leaf(scene: Sheet, stem: complex, size: float, rng: Random) -> None:
    axis = turn(360 * rng.random()) * size
    green = mix((74, 128, 60), (182, 182, 72), rng.random())
    sides = (0, complex(0.45, 0.28), 1, complex(0.45, -0.28))
    scene.mark(smooth([stem + axis * z for z in sides]), green)
    vein = limb([stem, stem + 0.85 * axis], [1.2, 0.6])
    scene.mark(vein, mix(green, (255, 255, 220), 0.35))


# --- from layers to a photograph ----------------------------------------------------------------

_RIM = [min(255, 2 * v) * 5 // 8 for v in range(256)]
_SHADE = [(255 - v) * 100 // 255 for v in range(256)]


def _lay_on(scene: Image.Image, sheet: Sheet) -> None:
    """Lay the bird on the scene, with a soft dark rim and a shade that makes it round."""
    side, margin = sheet.side, sheet.side // 60 + 4
    bounds = sheet.mask.getbbox()
    left, top = (max(0, v - margin) for v in bounds[:2])
    right, bottom = (min(side, v + margin) for v in bounds[2:])
    box = (left, top, right, bottom)
    bird, mask = sheet.image.crop(box), sheet.mask.crop(box)
    scene.paste((42, 36, 38), box, mask.filter(ImageFilter.BoxBlur(side / 130)).point(_RIM))
    inside = mask.reduce(4)
    lowered = Image.new("L", inside.size)  # the light comes from above: look for the rim below
    lowered.paste(inside, (side // 250, -(side // 80)))
    shade = lowered.filter(ImageFilter.BoxBlur(side / 80)).point(_SHADE)
    bird.paste((34, 26, 54), (0, 0), shade.resize(mask.size, Image.Resampling.BILINEAR))
    scene.paste(bird, box, mask)


def photograph(
    bird: Sheet, stance: str, ground: float, water: float, size: int, rng: Chance
) -> Image.Image:
    """Return the bird in a scene, (size, size) RGB, with light, blur and noise of a small camera.

    `ground` and `water` are the heights in bird coordinates on which it stands or swims.
    """
    rng.part = "background"
    scene = bird.layer(_background(rng, bird.side))
    rng.part = "ground"  # and water, which is drawn in front
    _draw_support(scene, stance, ground, rng)
    _lay_on(scene.image, bird)
    _draw_front(scene, stance, water, rng)
    picture = scene.image.reduce(ENLARGEMENT)
    rng.part = "blur"
    radius = NUISANCE.blur * rng.random() * size / 96
    if radius > 0.25:
        picture = picture.filter(ImageFilter.BoxBlur(radius))
    rng.part = "light"
    gain = 1 + (1.5 * rng.random() - 1) * NUISANCE.light  # less up than down: white must not burn
    rng.part = "cast"
    levels = [round(256 * gain * (1 + swing(rng, NUISANCE.cast))) for _ in range(3)]
    rng.part = "noise"
    amplitude = int(rng.random() * (NUISANCE.noise + 1))
    grain = np.frombuffer(rng.randbytes(3 * size * size), np.int8).reshape(size, size, 3)
    pixels = np.asarray(picture).astype(np.int32) * levels + 2 * amplitude * grain.astype(np.int32)
    return Image.fromarray(np.clip(pixels >> 8, 0, 255).astype(np.uint8))
