"""What people look at: `qc.png`, `report.html` and a cohort's `index.html`.

All three show 8-bit slices of one `SliceStack` for each plane. The page shows the values of
`report.json` itself, and nothing in it is loaded from anywhere else.
"""
