"""Models that somebody already has: checkpoints of diffusers, converted once, at the border.

`folder` reads one, `schedule` makes its noise schedule a process, and a file per architecture says what of it is which
part of ours; techniques meet networks that they know.
"""
