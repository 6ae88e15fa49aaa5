"""Cats and dogs of the drawn world."""

from e4t.tiny import faces

CAT_PARAMETERS = DOG_PARAMETERS = faces.PARAMETERS
draw_cat = draw_dog = faces.draw_face
