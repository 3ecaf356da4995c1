"""The kitchen's objects: shape, size, colours, and what people use them for."""

from __future__ import annotations

from dataclasses import dataclass

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Thing:
    """One graspable object. Every one fits the gripper (at most 7 cm across its narrow side)."""

    shape: str  # "can" and "bottle": (radius, half height); "box": half sizes; "ball": (radius,)   [m]
    size: tuple[float, ...]
    color: Rgb
    accent: Rgb  # band, cap or label: tells like-coloured things apart
    use: str = ""  # "snack", "drink" or ""

    @property
    def half_height(self) -> float:
        """Height of the centre above the surface it stands on [m]."""
        return self.size[{"can": 1, "bottle": 1, "box": 2, "ball": 0}[self.shape]]

    @property
    def half_width(self) -> float:
        """Half of what the fingers close around [m]."""
        return self.size[1 if self.shape == "box" else 0]


CAN, SLIM, BOTTLE, BAG, BAR, BALL = (
    (0.031, 0.052),
    (0.026, 0.065),
    (0.029, 0.07),
    (0.055, 0.028, 0.032),
    (0.055, 0.02, 0.014),
    (0.035,),
)

THINGS: dict[str, Thing] = {
    "7up can": Thing("can", CAN, (0.05, 0.65, 0.15), (0.95, 0.95, 0.1), "drink"),
    "coke can": Thing("can", CAN, (0.85, 0.05, 0.05), (0.9, 0.9, 0.9), "drink"),
    "orange can": Thing("can", CAN, (1.0, 0.5, 0.0), (0.3, 0.15, 0.0), "drink"),
    "pepsi can": Thing("can", CAN, (0.05, 0.15, 0.8), (0.9, 0.1, 0.1), "drink"),
    "redbull can": Thing("can", SLIM, (0.55, 0.6, 0.75), (0.1, 0.1, 0.5), "drink"),
    "green can": Thing("can", CAN, (0.0, 0.33, 0.12), (0.92, 0.92, 0.92), "drink"),
    "brown chip bag": Thing("box", BAG, (0.45, 0.25, 0.08), (0.8, 0.7, 0.4), "snack"),
    "green rice chip bag": Thing("box", BAG, (0.45, 0.8, 0.35), (0.95, 0.95, 0.9), "snack"),
    "green jalapeno chip bag": Thing("box", BAG, (0.0, 0.35, 0.1), (0.8, 0.8, 0.0), "snack"),
    "blue chip bag": Thing("box", BAG, (0.0, 0.2, 0.5), (0.4, 0.8, 1.0), "snack"),
    "apple": Thing("ball", BALL, (0.7, 0.0, 0.1), (0.3, 0.2, 0.0), "snack"),
    "orange": Thing("ball", BALL, (1.0, 0.55, 0.1), (0.2, 0.5, 0.0), "snack"),
    "water bottle": Thing("bottle", BOTTLE, (0.75, 0.9, 0.95), (0.95, 0.95, 1.0), "drink"),
    "blue plastic bottle": Thing("bottle", BOTTLE, (0.1, 0.45, 1.0), (0.05, 0.1, 0.3), "drink"),
    "rxbar blueberry": Thing("box", BAR, (0.35, 0.1, 0.6), (0.9, 0.9, 0.9), "snack"),
    "sponge": Thing("box", (0.045, 0.03, 0.02), (0.95, 0.85, 0.1), (0.1, 0.5, 0.1)),
    "lime soda": Thing("can", CAN, (0.7, 0.95, 0.2), (0.05, 0.3, 0.05), "drink"),
    "grapefruit soda": Thing("can", CAN, (1.0, 0.45, 0.6), (0.95, 0.95, 0.8), "drink"),
    "tea": Thing("bottle", BOTTLE, (0.5, 0.27, 0.05), (0.95, 0.8, 0.1), "drink"),
    "multigrain chips": Thing("box", BAG, (0.85, 0.68, 0.35), (0.75, 0.1, 0.1), "snack"),
    "energy bar": Thing("box", BAR, (0.85, 0.25, 0.05), (0.1, 0.1, 0.1), "snack"),
}
