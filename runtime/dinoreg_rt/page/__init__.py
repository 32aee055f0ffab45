"""What people look at: `qc.png`, `report.html`, a cohort's `index.html`, and `features.png`.

The first three show 8-bit slices of one `SliceStack` for each plane. The page shows the values of
`report.json` itself, and nothing in it is loaded from anywhere else.
"""
