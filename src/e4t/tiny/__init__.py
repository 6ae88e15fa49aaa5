"""A small Stable Diffusion of our own and the drawn world it is trained on."""
