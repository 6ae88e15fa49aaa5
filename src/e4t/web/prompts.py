"""Style, place and accessory chips, put together to a prompt."""

from __future__ import annotations

PLAIN = "photo"
STYLES = {
    PLAIN: "a photo of {}",
    "pencil sketch": "a pencil sketch of {}",
    "watercolour": "a watercolour of {}",
    "pixel art": "pixel art of {}",
    "oil painting": "an oil painting of {}",
    "stained glass": "a stained glass window of {}",
    "snow globe": "a snow globe with {}",
}
ART_STYLES = {"a face": "a face{place} in the style of {}", "a cat": "a cat{place} in the style of {}"}
NOWHERE = "anywhere"
PLACES = {
    NOWHERE: "",
    "beach": " at the beach",
    "snow": " in the snow",
    "space": " in space",
    "forest": " in a forest",
    "library": " in a library",
}
NOTHING = "nothing"
WORN = {NOTHING: "", "sunglasses": " wearing sunglasses", "crown": " wearing a crown"}


def styles_of(class_word: str) -> list[str]:
    """The first row of chips: styles of a subject, or subjects of a style."""
    return list(ART_STYLES if class_word == "art" else STYLES)


def compose(class_word: str, placeholder: str, style: str, place: str, worn: str) -> str:
    """("face", "S*", "watercolour", "snow", "nothing") → "a watercolour of S* in the snow"."""
    where, what = PLACES.get(place, ""), WORN.get(worn, "")
    if class_word == "art":
        template = ART_STYLES.get(style, ART_STYLES["a face"])
        return template.replace("{place}", what + where).replace("{}", placeholder)
    return STYLES.get(style, STYLES[PLAIN]).replace("{}", placeholder) + what + where
