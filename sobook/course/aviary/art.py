"""Drawing of a bird of the aviary: a handful of smooth polygons.

A genus fixes a `Look` (proportions and base colors), `Marks` tell its species apart, and a `Pose`
changes from image to image. Bodies have their own coordinates: x from -0.5 (rump) to 0.5 (breast),
y from -0.5 (back) to 0.5 (belly); heads count in head radii.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from sobook.course.aviary.scene import (
    BLACK,
    ENLARGEMENT,
    NUISANCE,
    TABLES,
    WHITE,
    Chance,
    Color,
    Points,
    Sheet,
    bezier,
    ellipse,
    limb,
    mix,
    photograph,
    smooth,
    swing,
    turn,
)

PAINTS: dict[str, Color] = {name: tuple(color) for name, color in TABLES["paints"].items()}


@dataclass(frozen=True)
class Look:
    """Look shared by all species of a genus; lengths in hundredths of a usual body's length."""

    form: str
    posture: float  # degrees by which the body points upwards
    length: float
    depth: float
    head: float  # radius
    neck: float
    tail: float
    tail_width: float  # half of it
    tail_lift: float  # degrees above the line of the body
    wing: float
    legs: float
    bill: str
    bill_length: float
    crest: str
    hood: bool  # the crown's color covers all of the head, not its upper half only
    stance: str  # perch | ground | swim | hover
    back: Color
    under: Color
    crown: Color
    wings: Color


@dataclass(frozen=True)
class Marks:
    """The field marks by which the species of a genus are told apart."""

    cap: str
    face: str
    eye_ring: str
    throat: str
    breast_band: str
    belly: str
    belly_pattern: str
    wing_bars: int
    wing_tip: str
    tail_fork: int
    bill_length: int
    bill_color: str
    leg_color: str


def places(polygon: str) -> list[tuple[float, float]]:
    """Return the points of a polygon written as in SVG: "x,y x,y …"."""
    return [tuple(map(float, point.split(","))) for point in polygon.split()]


POLYGONS = {name: places(polygon) for name, polygon in TABLES["polygons"].items()}


class Pose:
    """Positions of the parts of one bird, before it is placed in the picture (it looks right)."""

    def __init__(self, look: Look, rng: Chance) -> None:
        rng.part = "pose"
        lively = NUISANCE.pose
        self.body = turn(look.posture + swing(rng, 7 * lively))
        self.length, self.radius = look.length, look.head
        self.depth = look.depth * (1 + swing(rng, 0.08 * lively))
        self.neck = self._neck(look, rng, lively)
        self.head = self.neck[-1]
        self.gaze = turn(swing(rng, 14 * lively))
        self.backwards = rng.random() < 0.16 * lively and look.neck < 60 and look.bill != "owl"
        self.turned = 1 - 0.28 * rng.random() * lively  # a head turned towards us: a shorter bill
        self.raised = look.stance == "hover" or rng.random() < 0.13 * lively
        beat = swing(rng, 9 * lively)  # angle of the wing about the shoulder
        rest = (-74 if look.stance == "hover" else -58) if self.raised else 6
        self.wing = -self.body * turn(rest + (3 if self.raised else 1) * beat)
        self.tail = -self.body * turn(-look.tail_lift + swing(rng, 10 * lively))
        self.step = swing(rng, 9 * lively)
        self.ground = self.at(0, 0.45).imag + look.legs + 9

    def _neck(self, look: Look, rng: Chance, lively: float) -> Points:
        shoulder, base = self.at(0.24, -0.06), self.at(0.38, -0.30 * self.body.real)
        reach = (look.neck + 0.35 * look.head) * (1 + swing(rng, 0.12 * lively))
        top = base + turn(64 + swing(rng, 16 * lively)) * reach
        if look.neck > 50:  # a heron's neck is an S
            bend = 0.55 * look.neck
            return bezier(shoulder, shoulder + bend * turn(8), top - bend * turn(25), top)
        return bezier(shoulder, (2 * shoulder + base) / 3, (base + top) / 2, top)

    def at(self, x: float, y: float) -> complex:
        """Return a place on the body."""
        return complex(x * self.length, y * self.depth) * self.body

    def on_head(self, x: float, y: float) -> complex:
        """Return a place on the head: x towards the bill, y downwards."""
        z = complex(x, y) * self.radius * self.gaze
        return self.head + (-z.conjugate() if self.backwards else z)

    def body_line(self, *places: tuple[float, float]) -> Points:
        return [self.at(x, y) for x, y in places]

    def head_line(self, *places: tuple[float, float]) -> Points:
        return [self.on_head(x, y) for x, y in places]

    def outline(self) -> Points:
        """Return the silhouette of the body without head, neck and limbs."""
        return smooth(self.body_line(*POLYGONS["body"]))


# --- behind the body: tail, legs, crest, bill ---------------------------------------------------


def draw_tail(sheet: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    """Two fans of feathers, the farther one darker; the fork is cut between them."""
    root, width = pose.at(-0.36, -0.08), look.tail_width
    length = look.tail + 0.12 * look.length
    fork = (0.0, 0.30, 0.62)[marks.tail_fork] * max(length, 45)
    spread = width * (1 + 0.35 * marks.tail_fork) * (0.35 if look.tail > 100 else 1)
    outer, tip = length + 0.35 * fork, length - 0.65 * fork if fork else 1.06 * length
    near = mix(look.wings, BLACK, 0.2)
    along = (0, 0.6 * outer, outer, 0.97 * outer, tip, 0)
    aside = (0.7 * width, 0.5 * width + 0.4 * spread, spread, 0.62 * spread, 0, -0.2 * width)
    for side, color in ((-1, near), (1, mix(near, look.back, 0.5))):
        feather = [complex(x, side * y) for x, y in zip(along, aside, strict=True)]
        sheet.shape([root + z * pose.tail for z in feather], color)


def draw_legs(sheet: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    if look.stance in ("swim", "hover"):
        return
    thick = 2.6 + 0.01 * look.legs
    for hip, step, shade in ((-0.10, pose.step, 0.25), (0.08, -pose.step, 0.0)):
        color = mix(PAINTS[marks.leg_color], BLACK, shade)
        top = pose.at(hip, 0.34)
        foot = complex(top.real + 0.35 * step + 4, pose.ground - 5)
        knee = (top + foot) / 2 - 0.10 * look.legs
        sheet.shape(limb([top, knee, foot], [thick + 1.5, thick, thick]), color)
        for toe in (13 + 3.4j, 7 + 5j, -8 + 3.4j):
            sheet.shape(limb([foot - 1j, foot + toe], [thick, 1.6]), color)


def draw_crest(sheet: Sheet, pose: Pose, look: Look, color: Color) -> None:
    for polygon in TABLES["crests"][look.crest]:
        sheet.shape(pose.head_line(*places(polygon)), color)
    if look.crest == "fan":
        for x, y in ((0.55, -1.9), (-0.05, -2.1), (-0.7, -2.0), (-1.25, -1.65)):
            path = pose.head_line((0, -0.4), (0.7 * x, 0.72 * y), (x, y))
            sheet.shape(limb(path, [3, 5, 4]), color)
            sheet.shape(ellipse(path[-1], 4.5, 4.5), mix(color, BLACK, 0.55))


def draw_bill(sheet: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    if look.bill == "owl":  # in the middle of its face
        return
    length = look.bill_length * (0.66, 1.0, 1.45)[marks.bill_length] * pose.turned / look.head
    paint = PAINTS[marks.bill_color]
    upper, lower = TABLES["bills"][look.bill]
    for half, color in ((lower, mix(paint, BLACK, 0.22)), (upper, paint)):
        sheet.shape([pose.on_head(0.8 + (0.2 + length) * x, y) for x, y in places(half)], color)


# --- body and head ------------------------------------------------------------------------------


def draw_plumage(sheet: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    """Body, neck and head with the marks on them, cut out along their common silhouette."""
    coat = sheet.layer()
    start = 0.40 * pose.depth
    widths = [start + (0.86 * look.head - start) * i / 8 for i in range(9)]
    if look.neck > 50:  # long necks are thin
        widths = [max(0.62 * look.head, width * (1 - 0.2 * i)) for i, width in enumerate(widths)]
    head = ellipse(pose.head, 1.03 * look.head, look.head)
    for outline in (pose.outline(), limb(pose.neck, widths), head):
        coat.shape(outline, look.back)
    _paint_underside(coat, pose, look, marks)
    coat.mark(ellipse(pose.head, 1.06 * look.head, 1.03 * look.head), look.crown)
    if not look.hood:
        coat.mark(smooth(pose.head_line(*POLYGONS["cheek"])), look.under)
    _paint_head(coat, pose, look, marks)
    sheet.add(coat)


def _paint_underside(coat: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    belly = look.under
    if marks.belly != "plain":
        belly = mix(belly, PAINTS[marks.belly], 0.82)
    coat.mark(smooth(pose.body_line(*POLYGONS["belly"])), belly)
    ink = mix(belly, BLACK, 0.75)
    if marks.belly_pattern == "bars":
        for x in (0.30, 0.16, 0.02, -0.12, -0.26):
            bar = pose.body_line((x, 0.0), (x + 0.03, 0.25), (x, 0.6))
            coat.mark(limb(bar, [2.6, 2.6, 2.6]), ink)
    for x, y in POLYGONS["flecks"]:
        if marks.belly_pattern == "spots":
            coat.mark(ellipse(pose.at(x, y), 3.7, 3.7), ink)
        elif marks.belly_pattern == "streaks":
            streak = pose.body_line((x + 0.06, y - 0.04), (x, y), (x - 0.07, y + 0.03))
            coat.mark(limb(streak, [0.6, 2.6, 0.6]), ink)
    if marks.breast_band != "none":
        band = pose.body_line((0.24, -0.42), (0.38, -0.05), (0.34, 0.20), (0.20, 0.60))
        coat.mark(limb(band, [5.5, 6.5, 6.5, 5.5]), PAINTS[marks.breast_band])


def _paint_head(coat: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    r = look.head
    if marks.throat != "none":
        coat.mark(smooth(pose.head_line(*POLYGONS["throat"])), PAINTS[marks.throat])
    if marks.cap != "none":
        coat.mark(pose.head_line(*POLYGONS["cap"]), PAINTS[marks.cap])
    if look.bill == "owl":
        _paint_owl(coat, pose, look, marks)
        return
    if marks.face in ("stripe", "mask"):
        wide = (0.17 if marks.face == "stripe" else 0.36) * r
        line = pose.head_line((1.1, 0.06), (0.3, -0.05), (-0.5, 0.02), (-1.1, 0.2))
        coat.mark(limb(line, [0.6 * wide, wide, wide, 0.7 * wide]), PAINTS["black"])
    elif marks.face == "brow":
        line = pose.head_line((0.95, -0.30), (0.3, -0.46), (-0.4, -0.40), (-1.0, -0.12))
        coat.mark(limb(line, [0.08 * r, 0.15 * r, 0.15 * r, 0.08 * r]), PAINTS["white"])
    _paint_eye(coat, pose.on_head(0.34 * pose.turned, -0.10), 0.155 * r + 2.0, marks.eye_ring)


def _paint_eye(coat: Sheet, eye: complex, size: float, ring: str) -> None:
    # Without a ring, draw a faint rim so that a dark eye stands out from a dark face.
    rim, color = (1.2, (86, 80, 84)) if ring == "none" else (3.2, PAINTS[ring])
    coat.mark(ellipse(eye, size + rim, size + rim), color)
    coat.mark(ellipse(eye, size, size), BLACK)
    coat.mark(ellipse(eye + size * complex(0.3, -0.36), 0.36 * size, 0.36 * size), WHITE)


def _paint_owl(coat: Sheet, pose: Pose, look: Look, marks: Marks) -> None:
    """A face that looks at us, whichever way the owl sits."""
    r, to_side = look.head, 1.1 * (pose.turned - 0.86)
    disc = mix(look.under, WHITE, 0.35)
    for x in (-1, 1):
        coat.mark(ellipse(pose.on_head(0.4 * x + to_side, 0.08), 0.50 * r, 0.56 * r), disc)
    for x in (-1, 1):
        ends = ((0.12, -0.12), (0.36, -0.46), (0.9, -0.62))
        brow = pose.head_line(*((along * x + to_side, down) for along, down in ends))
        if marks.face == "brow":
            coat.mark(limb(brow, [0.10 * r, 0.14 * r, 0.05 * r]), PAINTS["white"])
        elif marks.face != "none":
            wide = (0.07 if marks.face == "stripe" else 0.17) * r
            coat.mark(limb(brow, [0.6 * wide, wide, 0.6 * wide]), PAINTS["black"])
        iris = "orange" if marks.eye_ring == "none" else marks.eye_ring
        _paint_eye(coat, pose.on_head(0.38 * x + to_side, 0.05), 0.20 * r, iris)
    bill = pose.head_line((to_side - 0.13, 0.24), (to_side + 0.13, 0.24), (to_side, 0.62))
    coat.mark(bill, PAINTS[marks.bill_color])


def draw_wing(sheet: Sheet, pose: Pose, look: Look, marks: Marks, *, far: bool = False) -> None:
    wing = sheet.layer()
    root, axis = pose.at(0.20, -0.22 if pose.raised else -0.16), pose.wing
    if far:
        axis *= turn(-46 if look.stance == "hover" else -18)
    length, depth = look.wing, (0.62 if pose.raised else 0.56) * look.depth
    base = mix(look.wings, BLACK, 0.25) if far else look.wings

    def line(*places: tuple[float, float]) -> Points:
        return [root + complex(x * length, -y * depth) * axis for x, y in places]

    wing.shape(smooth(line(*POLYGONS["wing"])), base)
    tip = mix(base, BLACK, 0.22) if marks.wing_tip == "none" else PAINTS[marks.wing_tip]
    wing.mark(line((0.62, -0.8), (1.3, -0.8), (1.3, 0.9), (0.50, 0.9)), tip)
    wing.mark(line((-0.3, -0.9), (0.34, -0.9), (0.26, 0.9), (-0.3, 0.9)), mix(base, WHITE, 0.13))
    for y, end in ((-0.10, 0.98), (0.10, 0.90), (0.28, 0.80)):
        shaft = line((0.44, y), (end, 0.5 * y + 0.05))
        wing.mark(limb(shaft, [0.6, 1.5]), mix(base, BLACK, 0.34))
    edge = line((0.10, 0.46), (0.42, 0.60), (0.78, 0.32), (1.06, 0.06))
    wing.mark(limb(edge, [1, 2, 2, 1]), mix(base, WHITE, 0.30))
    for x in (0.30, 0.50)[: marks.wing_bars]:
        bar = line((x + 0.05, -0.7), (x, 0.0), (x - 0.04, 0.8))
        wing.mark(limb(bar, [4.0, 4.0, 4.0]), PAINTS["white"])
    sheet.add(wing)


# --- the picture --------------------------------------------------------------------------------


def _extent(points: Points) -> tuple[complex, float]:
    """Return the middle of the points' bounding box, and its longer side."""
    xs, ys = [z.real for z in points], [z.imag for z in points]
    middle = complex(min(xs) + max(xs), min(ys) + max(ys)) / 2
    return middle, max(max(xs) - min(xs), max(ys) - min(ys))


def _blank_sheet(pose: Pose, look: Look, rng: Chance, side: int) -> Sheet:
    """Choose scale, tilt, place and direction such that most of the bird is in the picture."""
    rng.part = "scale"
    low, high = NUISANCE.scale
    span = (low + (high - low) * rng.random()) * side
    trunk = pose.outline() + ellipse(pose.head, look.head, look.head)
    bill = pose.on_head(1 + look.bill_length / look.head, 0)
    ends = [pose.at(-0.4, 0) + pose.tail * look.tail, bill]
    if look.stance in ("perch", "ground"):
        ends.append(complex(0, pose.ground))
    core, (middle, whole) = _extent(trunk)[1], _extent(trunk + ends)
    scale = min(0.86 * span / core, 1.06 * span / whole)
    rng.part = "tilt"
    tilt = swing(rng, NUISANCE.tilt) * (0.35 if look.stance == "swim" else 1)  # water is level
    factor = scale * turn(tilt)
    rng.part = "direction"
    flip = rng.random() < 0.5
    away = [-z.conjugate() if flip else z for z in (middle * factor, pose.head * factor)]
    rng.part = "place"
    shift = complex(swing(rng, NUISANCE.place), swing(rng, NUISANCE.place)) * side
    offset = complex(side, side) / 2 + shift - away[0]
    head = offset + away[1]  # with most of the marks on it, it must be well inside
    inside = [min(max(v, 0.2 * side), 0.8 * side) for v in (head.real, head.imag)]
    canvas = Image.new("RGB", (side, side))
    return Sheet(canvas, factor, offset + complex(*inside) - head, flip)


def _bird(look: Look, marks: Marks, rng: Chance, size: int) -> tuple[Sheet, Pose]:
    """A bird without a scene, on its sheet."""
    pose = Pose(look, rng)
    sheet = _blank_sheet(pose, look, rng, ENLARGEMENT * size)
    if pose.raised:
        draw_wing(sheet, pose, look, marks, far=True)
    draw_tail(sheet, pose, look, marks)
    draw_legs(sheet, pose, look, marks)
    draw_crest(sheet, pose, look, look.crown if marks.cap == "none" else PAINTS[marks.cap])
    draw_bill(sheet, pose, look, marks)
    draw_plumage(sheet, pose, look, marks)
    draw_wing(sheet, pose, look, marks)
    return sheet, pose


def paint(look: Look, marks: Marks, rng: Chance, size: int) -> Image.Image:
    """Return one picture of a bird, (size, size) RGB, with all chance taken from `rng`."""
    sheet, pose = _bird(look, marks, rng, size)
    return photograph(sheet, look.stance, pose.ground, pose.at(0, 0.26).imag, size, rng)


def cut_out(look: Look, marks: Marks, rng: Chance, size: int) -> Image.Image:
    """Return where the bird of `paint` is, with the same chance: (size, size), 8-bit gray."""
    return _bird(look, marks, rng, size)[0].mask.reduce(ENLARGEMENT)
