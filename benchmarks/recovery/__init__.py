"""Which crop boxes are found again from a crop, from how far off, how exactly and how fast: by diffcrop and others.

`photographs`, `problems`, `methods`, `plan` and `goals` are data; `measure` runs the plan, with `gate` before every
figure; `results` reads records, `report` and `charts` write docs/recovery.md.
"""
